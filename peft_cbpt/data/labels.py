"""Label spaces: which classes a dataset has, and how its labels say which is meant."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from peft_cbpt.common.errors import InputError, did_you_mean
from peft_cbpt.common.files import read_text

logger = logging.getLogger(__name__)
NEARLY_ALL = 0.95
NO_LABEL = -1  # how Hub datasets mark rows of unlabelled splits


_WHOLE = re.compile(r"\d+(\.0*)?")
_NO_WORD = re.compile(r"(class|label|category|id|[^\W\d_]?)[\W_]*\d+", re.IGNORECASE)


def as_words(name: str) -> str:
    """A class name as prompts have it: single spaces, for underscores too.

    >>> as_words(" hot_dog")
    'hot dog'
    """
    return " ".join(name.replace("_", " ").split())


def label_key(label: Any) -> str:
    """What labels and names are compared by: words without case, whole numbers without a point.

    >>> label_key("Hot_dog "), label_key(3.0), label_key("3.0")
    ('hot dog', '3', '3')
    """
    text = as_words(str(label)).casefold()
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a dataset.

    Args:
        class_names: Names in label order.
        keys: From the `label_key` of every way a label is written (a wnid, a folder's name, a number) to its index.
    """

    class_names: Sequence[str]
    keys: Mapping[str, int]

    def index(self, label: Any) -> int | None:
        """Index of a label as the dataset has it, a string or a number; None if it is not of this space."""
        key = label_key(label)
        if key in self.keys:
            return self.keys[key]
        return self.keys.get(str(int(key))) if key.isdecimal() else None


def named_space(class_names: Sequence[str], written: Sequence[str] | None = None) -> LabelSpace:
    """Classes that labels name by their number, by their name, or as `written` has it."""
    numbers = {str(index): index for index in range(len(class_names))}
    names = {label_key(name): index for index, name in enumerate(class_names)}
    codes = {label_key(key): index for index, key in enumerate(written or [])}
    return LabelSpace(class_names, names | numbers | codes)


def space_of_names(written: Sequence[str], dataset_name: str) -> LabelSpace:
    """Classes as labels spell them, in this order; spellings that `label_key` does not tell apart are one class.

    A warning says which are, and where the names are codes that no text tower knows.
    """
    spelled: dict[str, str] = {}
    for name in written:
        if (first := spelled.setdefault(label_key(name), name)) != name:
            logger.warning("%s: %r and %r are taken for one class", dataset_name, first, name)
    names = list(map(as_words, spelled.values()))
    codes = [name for name in names if _NO_WORD.fullmatch(name)]
    if 2 * len(codes) > len(names):
        logger.warning(
            "%s: its class names look like codes (%s), which no CLIP has read: name them with class_names_file, a "
            "text file of LABEL<tab>NAME lines",
            dataset_name,
            ", ".join(codes[:3]),
        )
    return LabelSpace(names, {key: index for index, key in enumerate(spelled)})


def read_class_names(file: str) -> LabelSpace:
    """The label space of a text file: a class name a line in label order, or `LABEL<tab>NAME` lines.

    Raises:
        InputError: if the file cannot be read, has blank or repeated names, or mixes both forms.
    """
    try:
        lines = read_text(Path(file).expanduser()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class_names_file {file}: give a UTF-8 text file ({error})") from error
    rows = [[as_words(cell) for cell in line.split("\t")] for line in lines if line.strip() and line[0] != "#"]
    widths = {len(row) for row in rows}
    if widths not in ({1}, {2}):
        raise InputError(f"class_names_file {file} needs a class name on every line, or a label, a tab and a name")
    columns = list(zip(*rows, strict=True))
    for column in columns:
        if twice := [cell for cell, count in Counter(map(label_key, column)).items() if not cell or count > 1]:
            raise InputError(f"class_names_file {file} holds {twice[0]!r} twice or a blank: name every class once")
    if widths == {1}:
        return named_space(columns[0])
    return LabelSpace(columns[1], {label_key(key): index for index, key in enumerate(columns[0])})


def space_of_feature(feature: Any, dataset_name: str, label_column: str) -> LabelSpace:
    """The classes that a `ClassLabel` column names itself.

    Raises:
        InputError: if it is no `ClassLabel`.
    """
    if not isinstance(feature, datasets.ClassLabel):
        raise InputError(
            f"column {label_column!r} of {dataset_name} names no classes: name them with class_names_file, a text "
            "file with a name on every line, the first for label 0"
        )
    return space_of_names(feature.names, dataset_name)


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
    if not known:
        pairs = [f"{theirs} is {name}" for theirs, name in zip(feature.names[:5], space.class_names, strict=False)]
        logger.warning("%s: its classes are named in their order: %s ...", dataset_name, ", ".join(pairs))
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
    if label is None or label == NO_LABEL or label != label or label == "":
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
    by_key = {label_key(name): name for name in known}
    if unknown := [name for name in wanted or [] if label_key(name) not in by_key]:
        near = did_you_mean(unknown[0], known)
        raise InputError(f"class {unknown[0]!r} is not among the {len(known)} classes of {dataset_name}{near}")
    kept = [by_key[label_key(name)] for name in wanted or known]
    if twice := [name for name, count in Counter(kept).items() if count > 1]:
        raise InputError(f"class {twice[0]!r} is named twice in class_names: name every class once")
    if num_classes is not None:
        if not 2 <= num_classes <= len(kept):
            raise InputError(f"num_classes must be between 2 and the {len(kept)} classes of {dataset_name}")
        kept = kept[:num_classes]
    return kept
