"""Label spaces: which classes a dataset has, and how its labels say which is meant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from peft_cbpt.common.errors import InputError

NEARLY_ALL = 0.95
NO_LABEL = -1  # how Hub datasets mark rows of unlabelled splits


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a dataset.

    Args:
        class_names: Names in label order.
        keys: From every way a label is written (a wnid, a folder's name, a number in decimals) to its index.
    """

    class_names: Sequence[str]
    keys: Mapping[str, int]

    def index(self, label: Any) -> int | None:
        """Index of a label as the dataset has it, a string or a number; None if it is not of this space."""
        text = str(label).strip()
        if text in self.keys:
            return self.keys[text]
        return self.keys.get(str(int(text))) if text.isdecimal() else None


def named_space(class_names: Sequence[str], written: Sequence[str] | None = None) -> LabelSpace:
    """Classes that labels name by their number, by their name, or as `written` has it."""
    numbers = {str(index): index for index in range(len(class_names))}
    names = {name: index for index, name in enumerate(class_names)}
    return LabelSpace(class_names, names | numbers | {key: index for index, key in enumerate(written or [])})


def read_class_names(file: str) -> LabelSpace:
    """The label space of a text file: a class name a line in label order, or `LABEL<tab>NAME` lines.

    Raises:
        InputError: if the file cannot be read, has blank or repeated names, or mixes both forms.
    """
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class_names_file {file}: give a UTF-8 text file ({error})") from error
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines if line.strip() and line[0] != "#"]
    widths = {len(row) for row in rows}
    if widths not in ({1}, {2}):
        raise InputError(f"class_names_file {file} needs a class name on every line, or a label, a tab and a name")
    columns = list(zip(*rows, strict=True))
    for column in columns:
        if twice := [cell for cell in column if not cell or column.count(cell) > 1]:
            raise InputError(f"class_names_file {file} holds {twice[0]!r} twice or a blank: name every class once")
    if widths == {1}:
        return named_space(columns[0])
    return LabelSpace(columns[1], {key: index for index, key in enumerate(columns[0])})


def space_of_feature(feature: Any, dataset_name: str, label_column: str) -> LabelSpace:
    """The classes that a `ClassLabel` column names itself.

    Raises:
        InputError: if it is no `ClassLabel`.
    """
    if not isinstance(feature, datasets.ClassLabel):
        raise InputError(
            f"column {label_column!r} of {dataset_name} is no ClassLabel: name its classes with class_names_file, or "
            "cast it with dataset.cast_column"
        )
    return LabelSpace(feature.names, {name: index for index, name in enumerate(feature.names)})


def label_reader(feature: Any, space: LabelSpace, dataset_name: str) -> Mapping[int, int] | None:
    """How the numbers of a `ClassLabel` column are to be read; None if its values say it themselves.

    Names that the space knows (wnids, or the integers that are the folder names of ImageNet-V2) decide: the numbers
    of a `ClassLabel` count sorted names. Otherwise the numbers themselves are the labels; then names that the space
    happens to know must nearly all stand in its own order, as those of the Hub's ImageNet do.

    Raises:
        InputError: if only some names are known and in another order, or the number of classes differs.
    """
    if not isinstance(feature, datasets.ClassLabel):
        return None
    indices = [space.index(name) for name in feature.names]
    known = {number: index for number, index in enumerate(indices) if index is not None}
    if len(known) == len(indices):
        return known
    as_many = len(feature.names) == len(space.class_names)
    in_order = sum(number == index for number, index in known.items())
    if known and not (as_many and in_order >= NEARLY_ALL * len(known)):
        stranger = feature.names[indices.index(None)]
        raise InputError(f"label {stranger!r} of {dataset_name} is not among its {len(space.class_names)} classes")
    if not as_many:
        raise InputError(
            f"{dataset_name} has {len(feature.names)} labels, but {len(space.class_names)} classes are named: make "
            "them agree"
        )
    return {index: index for index in range(len(feature.names))}


def read_label(
    label: Any, numbers: Mapping[int, int] | None, space: LabelSpace, row_name: str, dataset_name: str
) -> int:
    """Index into `space.class_names` of a label as a dataset has it; `numbers` is from `label_reader`.

    Raises:
        InputError: if there is no label, or it is not of the space.
    """
    index = space.index(label) if numbers is None else numbers.get(label)
    if index is not None:
        return index
    if label is None or label == NO_LABEL:
        raise InputError(f"row {row_name} of {dataset_name} has no label: label it or remove it")
    raise InputError(
        f"the label {label!r} of row {row_name} of {dataset_name} is not among its {len(space.class_names)} classes"
    )


def kept_classes(
    known: Sequence[str], wanted: Sequence[str] | None, num_classes: int | None, dataset_name: str
) -> list[str]:
    """The classes to keep, in label order: `wanted`, or all that are `known`; the first `num_classes` of them.

    Raises:
        InputError: for a name twice, an unknown name or an impossible number.
    """
    kept = list(wanted or known)
    if twice := [name for name in kept if kept.count(name) > 1]:
        raise InputError(f"class {twice[0]!r} is named twice in class_names: name every class once")
    if unknown := sorted(set(kept) - set(known), key=kept.index):
        raise InputError(f"class {unknown[0]!r} is not among the {len(known)} classes of {dataset_name}")
    if num_classes is not None:
        if not 2 <= num_classes <= len(kept):
            raise InputError(f"num_classes must be between 2 and the {len(kept)} classes of {dataset_name}")
        kept = kept[:num_classes]
    return kept
