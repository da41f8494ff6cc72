"""The baseline defences, FT and CleanCLIP: fine-tune a suspicious CLIP on clean image-caption pairs."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone

from transformers import TrainingArguments, set_seed

from peft_cbpt.clip.loading import LoadedCLIP, load_clip
from peft_cbpt.clip.versions import package_versions
from peft_cbpt.commands.files import prepare_output, write_json
from peft_cbpt.commands.parsing import parse
from peft_cbpt.commands.results import Stopwatch
from peft_cbpt.errors import InputError
from peft_cbpt.pocket.dataset import PocketPairs
from peft_cbpt.pocket.model import resolve_model, save_clip_folder
from peft_cbpt.training.cleanclip_trainer import CleanCLIPCollator, CleanCLIPTrainer
from peft_cbpt.training.contrastive_trainer import ContrastiveCollator, ContrastiveTrainer

METHODS = ("ft", "cleanclip")


@dataclass
class FinetuneArguments:
    """What to fine-tune, and how."""

    model_name_or_path: str = field(metadata={"help": "The suspicious CLIP: a folder, a Hub id or pocket:NAME."})
    output_dir: str = field(metadata={"help": "Folder to write the fine-tuned model to."})
    method: str = field(default="cleanclip", metadata={"help": "ft (Eq. 3 only) or cleanclip."})
    num_pairs: int = field(default=9600, metadata={"help": "Clean image-caption pairs of the pocket world."})
    num_epochs: int = field(default=3, metadata={"help": "Passes over the pairs."})
    batch_size: int = field(default=64, metadata={"help": "Pairs per step."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of AdamW, cosine schedule."})
    warmup_steps: int = field(default=50, metadata={"help": "Steps in which the learning rate rises."})
    seed: int = field(default=0, metadata={"help": "Seed of data and training."})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method is one of {', '.join(METHODS)}, not {self.method!r}")
        for name in ("num_pairs", "num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learning_rate must be positive, it is {self.learning_rate}")
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps must not be negative, it is {self.warmup_steps}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be between 0 and 2**32 - 1, it is {self.seed}")


def finetune(argv: Sequence[str]) -> None:
    """Run a baseline defence; see `recipes/finetune.py`."""
    (arguments,) = parse([FinetuneArguments], argv, __doc__ or "")
    output = prepare_output(arguments.output_dir)
    clip = load_clip(resolve_model(arguments.model_name_or_path))
    stopwatch = Stopwatch()
    with stopwatch(arguments.method):
        finetune_clip(clip, arguments)
    save_clip_folder(output, clip.model, clip.tokenizer, clip.image_processor)
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": {name: value for name, value in asdict(arguments).items() if name != "output_dir"},
        "seconds": stopwatch.seconds,
        "versions": package_versions(),
    }
    write_json(output / "training.json", record)
    print(output)


def finetune_clip(clip: LoadedCLIP, arguments: FinetuneArguments) -> None:
    """Fine-tune `clip` in place on clean pairs that no other split has."""
    set_seed(arguments.seed)
    training = TrainingArguments(
        output_dir=arguments.output_dir,
        num_train_epochs=arguments.num_epochs,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=0.1,
        lr_scheduler_type="cosine",
        warmup_steps=arguments.warmup_steps,
        logging_steps=100,
        save_strategy="no",
        remove_unused_columns=False,
        report_to="none",
        seed=arguments.seed,
    )
    pairs = PocketPairs(arguments.num_pairs, split=f"defence{arguments.seed}")
    if arguments.method == "ft":
        collator = ContrastiveCollator(clip.tokenizer, clip.normalize)
        trainer = ContrastiveTrainer(clip.model, training, train_dataset=pairs, data_collator=collator)
    else:
        augmenting = CleanCLIPCollator(clip.tokenizer, clip.normalize, arguments.seed)
        trainer = CleanCLIPTrainer(clip.model, training, train_dataset=pairs, data_collator=augmenting)
    trainer.train()
    clip.model.eval()
