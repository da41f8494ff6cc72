"""The baseline defences, FT and CleanCLIP: fine-tune a suspicious CLIP on clean image-caption pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset
from transformers import TrainerCallback, set_seed

from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import alone_in, prepare_output, write_json
from peft_cbpt.common.processes import join_processes
from peft_cbpt.common.records import Stopwatch, made_now
from peft_cbpt.data.skipping import Skipped
from peft_cbpt.pocket.model import open_clip, save_clip_folder
from peft_cbpt.training.cleanclip_trainer import CleanCLIPCollator, CleanCLIPTrainer
from peft_cbpt.training.contrastive_trainer import ContrastiveCollator, ContrastiveTrainer
from peft_cbpt.training.pair_arguments import POCKET, FineTuningArguments, in_memory, skipped_pairs

TRAINING_FILE = "training.json"
METHODS = ("ft", "cleanclip")


@dataclass
class FinetuneArguments(FineTuningArguments):
    """What to fine-tune, and how; the defaults are CleanCLIP's."""

    model_name_or_path: str = field(default="", metadata={"help": "The suspicious CLIP: folder, Hub id, pocket:NAME."})
    output_dir: str = field(default="output/finetuned", metadata={"help": "Folder to write the fine-tuned model to."})
    method: str = field(default="cleanclip", metadata={"help": "ft (Eq. 3 only) or cleanclip."})
    num_pairs: int = field(default=100_000, metadata={"help": "Clean pairs to use, at most."})
    num_epochs: int = field(default=10, metadata={"help": "Passes over the pairs."})
    batch_size: int = field(default=64, metadata={"help": "Pairs per step."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model_name_or_path:
            raise InputError("model_name_or_path is missing: name the suspicious CLIP")
        if self.method not in METHODS:
            raise InputError(f"method is one of {', '.join(METHODS)}, not {self.method!r}")


def finetune(arguments: FinetuneArguments) -> dict[str, Any]:
    """Run a baseline defence and write the fine-tuned model.

    Returns:
        The content of `training.json`.

    Raises:
        InputError: if something is wrong with what was given, or no pair could be used.
    """
    with alone_in(prepare_output(arguments.output_dir)) as output:
        return _finetune(arguments, output)


def _finetune(arguments: FinetuneArguments, output: Path) -> dict[str, Any]:
    state, stopwatch = join_processes(), Stopwatch()
    clip = open_clip(arguments.model_name_or_path)
    with stopwatch(arguments.method):
        skipped = finetune_clip(clip, arguments)
    record = {
        **made_now(),
        "settings": arguments.as_dict(),
        "skipped": {"pairs": [one.as_dict() for one in skipped]},
        "seconds": stopwatch.seconds,
    }
    if state.is_main_process:
        (output / TRAINING_FILE).unlink(missing_ok=True)
        save_clip_folder(output, clip.model, clip.tokenizer, clip.image_processor)
        write_json(output / TRAINING_FILE, record)
    return record


def finetune_clip(
    clip: LoadedCLIP, arguments: FinetuneArguments, callbacks: Sequence[TrainerCallback] = ()
) -> list[Skipped]:
    """Fine-tune what of `clip` has a gradient, in place; of the pocket world, on pairs that no poisoned model knows.

    Returns:
        The pairs that could not be used.

    Raises:
        InputError: if none could.
    """
    set_seed(arguments.seed)
    collator: ContrastiveCollator | CleanCLIPCollator
    if arguments.method == "ft":
        collator = ContrastiveCollator(clip.caption_ids, clip.normalize)
    else:
        collator = CleanCLIPCollator(clip.caption_ids, clip.normalize, arguments.seed)
    source = pairs = arguments.open_pairs("defence", clip.image_processor)
    if arguments.pairs_name == POCKET and not isinstance(pairs, IterableDataset):
        pairs = in_memory(pairs)
    training = arguments.training_arguments(arguments.output_dir, pairs)
    trainer_type = ContrastiveTrainer if arguments.method == "ft" else CleanCLIPTrainer
    trainer = trainer_type(
        clip.model, training, train_dataset=pairs, data_collator=collator, callbacks=list(callbacks)
    )
    trainer.train()
    if trainer.state.global_step == 0:
        raise InputError(f"none of the pairs of {arguments.pairs_name} can be used: see to its images and captions")
    clip.model.eval()
    return skipped_pairs(source)
