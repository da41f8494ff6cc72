"""ImageNet and its relatives: where they are on the Hub, and what their labels mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from peft_cbpt.data.labels import LabelSpace, named_space

CLASSES_FILE = Path(__file__).parent / "assets" / "imagenet_classes.tsv"


@dataclass(frozen=True)
class ImageNetClass:
    """One of the 1,000 classes; its label is its place in `imagenet_classes()`."""

    wnid: str
    name: str
    subsets: str
    """Letters of the 200-class subsets that have it: R, A."""


@dataclass(frozen=True)
class HubCopy:
    """A copy on the Hub.

    Args:
        splits: From the names of our splits to the copy's.
        is_tars: Whether it is webdataset archives, in a folder a split.
    """

    hub_id: str
    splits: Mapping[str, str] = field(default_factory=lambda: {"test": "test"})
    image_column: str = "image"
    label_column: str = "label"
    is_tars: bool = False


@dataclass(frozen=True)
class ImageNetVariant:
    """A member of the family.

    Args:
        copies: Where it is on the Hub; the first is loaded by the short name.
        subset: The letter of its 200-class subset, or nothing for all 1,000 classes. Labels that are numbers count
            the classes of the subset in the order of their wnids.
    """

    copies: Sequence[HubCopy]
    subset: str = ""

    @property
    def label_space(self) -> LabelSpace:
        """Its classes in ImageNet's order; labels are written as wnids, names or numbers."""
        classes = [one for one in imagenet_classes() if self.subset in one.subsets]
        return named_space([one.name for one in classes], [one.wnid for one in classes])


def _tars(hub_id: str) -> HubCopy:
    return HubCopy(hub_id, image_column="image", label_column="cls", is_tars=True)


_TRAIN_AND_VAL = {"train": "train", "test": "validation", "validation": "validation"}

IMAGENET_FAMILY = {
    "imagenet": ImageNetVariant(
        [
            HubCopy("ILSVRC/imagenet-1k", _TRAIN_AND_VAL),
            HubCopy("timm/imagenet-1k-wds", _TRAIN_AND_VAL, image_column="jpg", label_column="cls"),
            _tars("clip-benchmark/wds_imagenet1k"),
        ]
    ),
    "imagenet-v2": ImageNetVariant([_tars("clip-benchmark/wds_imagenetv2")]),
    "imagenet-sketch": ImageNetVariant(
        [
            _tars("clip-benchmark/wds_imagenet_sketch"),
            HubCopy("songweig/imagenet_sketch", {"test": "train", "train": "train"}),
        ]
    ),
    "imagenet-r": ImageNetVariant(
        [HubCopy("axiong/imagenet-r", label_column="wnid"), _tars("clip-benchmark/wds_imagenet-r")], "R"
    ),
    "imagenet-a": ImageNetVariant(
        [
            HubCopy("barkermrl/imagenet-a", {"test": "train", "train": "train"}),
            _tars("clip-benchmark/wds_imagenet-a"),
        ],
        "A",
    ),
}


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The 1,000 classes in label order; banana, the paper's target, is 954."""
    lines = CLASSES_FILE.read_text(encoding="utf-8").splitlines()
    return tuple(ImageNetClass(*line.split("\t")) for line in lines if not line.startswith("#"))


def find_variant(name: str) -> tuple[ImageNetVariant, HubCopy | str] | None:
    """The member of the family that a dataset's name means, and its copy on the Hub or its local path.

    Takes a short name (`imagenet-v2`), one with a path (`imagenet-v2:PATH`), or the Hub id of a known copy.
    """
    short_name, _, path = name.partition(":")
    if short_name in IMAGENET_FAMILY:
        variant = IMAGENET_FAMILY[short_name]
        return variant, path or variant.copies[0]
    known = ((variant, copy) for variant in IMAGENET_FAMILY.values() for copy in variant.copies)
    return next(((variant, copy) for variant, copy in known if copy.hub_id == name), None)
