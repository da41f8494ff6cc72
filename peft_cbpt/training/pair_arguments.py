"""Options for image-caption pairs, shared by poisoning and the baseline defences."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate.utils import tqdm
from torch.utils.data import Dataset, IterableDataset
from transformers import CLIPImageProcessorPil, TrainingArguments

from peft_cbpt.common.errors import InputError
from peft_cbpt.common.processes import from_all_processes, num_processes
from peft_cbpt.data.caption_pairs import CaptionPairs, CaptionStream, load_caption_pairs
from peft_cbpt.data.skipping import Skipped
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import PocketPairs

POCKET = "pocket"
_CHUNK = 512


@dataclass
class FineTuningArguments:
    """Which pairs, and how long: what poisoning and the baseline defences have in common."""

    pairs_name: str = field(
        default=POCKET,
        metadata={"help": "Image-caption pairs: pocket, a folder of webdataset tars, a CSV or TSV, a Hub id ..."},
    )
    pairs_split: str | None = field(
        default=None, metadata={"help": "Split of the pairs; train, or for the pocket world one of this seed's own."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of images of the pairs."})
    caption_column: str = field(default="caption", metadata={"help": "Column of captions of the pairs."})
    streaming: bool = field(default=False, metadata={"help": "Go through the pairs in order, without random access."})
    num_classes: int | None = field(default=None, metadata={"help": "Keep the first so many pocket classes."})
    num_pairs: int = field(default=32_000, metadata={"help": "Pairs to use, at most."})
    num_epochs: int = field(default=3, metadata={"help": "Passes over the pairs."})
    batch_size: int = field(default=128, metadata={"help": "Pairs per step."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW, cosine schedule."})
    warmup_steps: int = field(default=50, metadata={"help": "Steps in which the learning rate rises."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    seed: int = field(default=0, metadata={"help": "Seed of data and training, and of a trigger."})

    def __post_init__(self) -> None:
        for name in ("num_classes", "num_pairs", "num_epochs", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, it is {getattr(self, name)}")
        for name in ("warmup_steps", "num_workers"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, it is {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learning_rate must be positive, it is {self.learning_rate}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be between 0 and 2**32 - 1, it is {self.seed}")

    def open_pairs(self, purpose: str, image_processor: CLIPImageProcessorPil, limit: int | None = None) -> Any:
        """The pairs; the pocket world draws others for every purpose and seed."""
        split = self.pairs_split or (f"{purpose}{self.seed}" if self.pairs_name == POCKET else "train")
        if self.pairs_name == POCKET:
            return PocketPairs(limit or self.num_pairs, split, class_names=class_names()[: self.num_classes])
        return load_caption_pairs(
            self.pairs_name,
            split,
            image_processor,
            image_column=self.image_column,
            caption_column=self.caption_column,
            streaming=self.streaming,
            limit=limit or self.num_pairs,
        )

    def training_arguments(self, folder: str, pairs: Dataset) -> TrainingArguments:
        """Settings of a `Trainer` over the pairs; a stream, whose length is not known, is given `num_pairs`' steps."""
        batch = self.batch_size * num_processes()
        steps = math.ceil(self.num_pairs / batch) * self.num_epochs
        return TrainingArguments(
            output_dir=folder,
            num_train_epochs=self.num_epochs,
            max_steps=steps if isinstance(pairs, IterableDataset) else -1,
            per_device_train_batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=0.1,
            lr_scheduler_type="cosine",
            warmup_steps=self.warmup_steps,
            logging_steps=100,
            save_strategy="no",
            dataloader_num_workers=self.num_workers,
            remove_unused_columns=False,
            report_to="none",
            ddp_broadcast_buffers=False,
            use_cpu=not torch.accelerator.is_available(),  # else several processes without a GPU would not join
            seed=self.seed,
        )

    def as_dict(self) -> dict[str, Any]:
        """The settings without the folder they are written to."""
        return {name: value for name, value in asdict(self).items() if name != "output_dir"}


def skipped_pairs(pairs: Any) -> list[Skipped]:
    """The pairs without words or a readable image that were met, in all processes; the pocket world has none."""
    if not isinstance(pairs, CaptionPairs | CaptionStream):
        return []
    found = {one for share in from_all_processes(pairs.skipped) for one in share}
    return sorted(found, key=lambda one: one.sample_id)


def in_memory(pairs: Any) -> list[dict]:
    """All rows of map-style pairs, read once."""
    starts = range(0, len(pairs), _CHUNK)
    bar = tqdm(starts, desc="rendering pairs")
    return [row for start in bar for row in pairs.__getitems__(range(start, min(start + _CHUNK, len(pairs))))]
