"""Split Tiny-ImageNet into the parts of the world of photographs, as parquet that every command reads.

    python recipes/prepare_photos.py --dataset_name zh-plus/tiny-imagenet --test_split valid --output_dir output/photos

Writes the splits `pretraining`, `poisoning` (with captions: the pairs of `recipes/poison.py --pairs_name FOLDER
--pairs_split poisoning`), `shots` and `test`. The part of a training image depends on its bytes alone.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import HfArgumentParser

from peft_cbpt.data.columns import Rows, with_images
from peft_cbpt.data.sources import open_source
from peft_cbpt.photos.captions import caption
from peft_cbpt.photos.classes import names_by_wnid
from peft_cbpt.photos.parts import PARTS, part_of


@dataclass
class PrepareArguments:
    output_dir: str = field(metadata={"help": "Folder to write the splits to."})
    dataset_name: str = field(metadata={"help": "Folder of parquet files or Hub id."})
    train_split: str = field(default="train", metadata={"help": "Split that is divided into the three parts."})
    test_split: str = field(default="val", metadata={"help": "Split that measures."})
    seed: int = field(default=0, metadata={"help": "Seed of the captions."})


def named_rows(name: str, split: str) -> datasets.Dataset:
    """Rows of `image` (encoded), `label` and `sample_id`, with our names and label order.

    Classes are known by their names or, as on the Hub, by their wnids.
    """
    rows: Any
    rows, _ = with_images(open_source(name, split), "image", name, split)
    known, order = names_by_wnid(), list(names_by_wnid().values())
    labels = [order.index(known.get(theirs, theirs)) for theirs in rows.features["label"].names]
    written = [labels[label] for label in rows["label"]]
    rows = rows.select_columns(["image", "sample_id"])
    return rows.add_column("label", written, feature=datasets.ClassLabel(names=order))


def write(rows: Rows, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows.cast_column("image", datasets.Image()).to_parquet(str(folder / "0000.parquet"))


def main(arguments: PrepareArguments) -> None:
    output = Path(arguments.output_dir)
    train = named_rows(arguments.dataset_name, arguments.train_split)
    parts = [part_of(image["bytes"]) for image in train["image"]]
    for part in PARTS:
        rows = train.select([row for row, its in enumerate(parts) if its == part])
        if part == "poisoning":
            rng, names = random.Random(arguments.seed), rows.features["label"].names
            rows = rows.shuffle(seed=arguments.seed)
            rows = rows.add_column("caption", [caption(names[label], rng) for label in rows["label"]])
        write(rows, output / part)
        print(f"{part}: {len(rows)} images")
    write(named_rows(arguments.dataset_name, arguments.test_split), output / "test")


if __name__ == "__main__":
    main(HfArgumentParser(PrepareArguments).parse_args_into_dataclasses()[0])
