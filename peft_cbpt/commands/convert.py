"""Turn an OpenAI, OpenCLIP, CleanCLIP or BadCLIP checkpoint into a transformers folder, or back.

SOURCE is a file (safetensors, .pt, .bin) or a folder. The architecture is read off the weights' shapes; every weight
must have its place, its shape and finite values, and the folder takes its name when it could be loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from peft_cbpt.clip.loading import load_clip
from peft_cbpt.commands.help_page import HelpPage
from peft_cbpt.commands.parsing import parse
from peft_cbpt.common.files import staged_folder
from peft_cbpt.convert.architecture import described
from peft_cbpt.convert.checkpoint_arguments import CheckpointArguments
from peft_cbpt.convert.convert import (
    Checkpoint,
    build_model,
    read_checkpoint,
    save_openai,
    save_transformers,
)
from peft_cbpt.convert.vocabulary import find_tokenizer

PAGE = HelpPage("convert", "peft-cbpt convert ViT-B-32.safetensors --output_dir my/clip")


@dataclass
class ConvertArguments:
    """What to convert."""

    source: str = field(
        metadata={"help": "The checkpoint: a file or a folder; may also stand first, without its name."}
    )
    output_dir: str = field(metadata={"help": "Folder to write; must not exist, or be empty."})
    to: str = field(
        default="transformers",
        metadata={
            "help": "Layout to write: a transformers folder or OpenAI's names.",
            "choices": ["transformers", "openai"],
        },
    )
    allow_unsafe: bool = field(
        default=False,
        metadata={"help": "Load pickles and TorchScript archives that run code. Only from people you trust."},
    )


def convert(argv: Sequence[str]) -> None:
    """Convert a checkpoint; see the module's docstring."""
    if argv and not argv[0].startswith("-"):
        argv = ["--source", *argv]
    arguments, how = parse([ConvertArguments, CheckpointArguments], argv, __doc__ or "", PAGE)
    with staged_folder(arguments.output_dir) as staging:
        print(f"reading {arguments.source}", flush=True)
        checkpoint = read_checkpoint(arguments.source, how, arguments.allow_unsafe)
        _describe(checkpoint)
        if arguments.to == "openai":
            save_openai(staging, checkpoint)
        else:
            named = how.tokenizer or (str(checkpoint.folder) if checkpoint.folder else None)
            tokenizer = find_tokenizer(named)
            save_transformers(staging, build_model(checkpoint), checkpoint, tokenizer)
            load_clip(str(staging))  # the folder must open as any other
    print(f"written to {arguments.output_dir}")


def _describe(checkpoint: Checkpoint) -> None:
    count = sum(value.numel() for value in checkpoint.weights.values())
    print(f"{described(checkpoint.config)}; {count:,} weights, activation {checkpoint.activation}", flush=True)
    for note in checkpoint.notes:
        print(note, flush=True)
