"""Write an adapter's classifier for use where PEFT is not installed."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

from peft_cbpt.commands.help_page import HelpPage
from peft_cbpt.commands.parsing import folder_first, parse
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output
from peft_cbpt.hub.adapter_folder import read_adapter
from peft_cbpt.hub.opening import adapter_folder, load_adapter, load_base
from peft_cbpt.tuner import CBPTConfig

STAGING_FOLDER = ".incomplete"


PAGE = HelpPage("export", "peft-cbpt export out --output_dir my/purified-clip")


@dataclass
class ExportArguments:
    """Which adapter to export, and as what."""

    folder: str = field(metadata={"help": "Folder of the adapter; may be given as the first word."})
    output_dir: str = field(metadata={"help": "Folder to write to."})
    kind: str = field(
        default="clip",
        metadata={
            "help": "A CLIP of its own with tokenizer and image processor, or only the features of the class prompts.",
            "choices": ["clip", "text_features"],
        },
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The base model; by default the one that was purified."}
    )


def export(argv: Sequence[str]) -> None:
    """Run the command; see docs/export.md."""
    (arguments,) = parse([ExportArguments], folder_first(argv), __doc__ or "", PAGE)
    folder = adapter_folder(arguments.folder)
    if not isinstance(read_adapter(folder), CBPTConfig):
        raise InputError(
            "this adapter has no prompts, only a repaired encoder: PEFT's own merge_and_unload() and "
            "save_pretrained() write it as a CLIP"
        )
    output = prepare_output(arguments.output_dir)
    if output.resolve() == folder.resolve():
        raise InputError("output_dir is the adapter's own folder: choose another, or the adapter cannot be loaded")
    clip = load_base(folder, arguments.model_name_or_path)
    model = load_adapter(folder, clip)
    staging = output / STAGING_FOLDER
    shutil.rmtree(staging, ignore_errors=True)
    try:
        model.export(arguments.kind, staging, clip.tokenizer, clip.image_processor)
    except ValueError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise InputError(str(error)) from error
    for file in sorted(staging.iterdir()):
        if file.is_dir():
            shutil.rmtree(output / file.name, ignore_errors=True)
        os.replace(file, output / file.name)
    staging.rmdir()
    print(f"{arguments.kind} of {len(model.class_names)} classes: {output}")
