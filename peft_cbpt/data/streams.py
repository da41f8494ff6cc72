"""Datasets read row by row, each row by exactly one process and DataLoader worker."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info
from transformers import CLIPImageProcessorPil

from peft_cbpt.data.columns import Rows
from peft_cbpt.data.decoding import UnreadableImage
from peft_cbpt.data.images import labelled_row, open_labelled
from peft_cbpt.data.labels import kept_classes, label_reader, read_label, space_of_feature
from peft_cbpt.data.skipping import Skipped

Row = TypeVar("Row")
_ROWS_AT_ONCE = 32


def my_share(rows: Iterable[Row]) -> Iterator[Row]:
    """Every n-th row, n being the number of readers: processes times DataLoader workers.

    All readers together see every row exactly once, whatever the number of files.
    """
    processes, process = 1, 0
    if distributed.is_available() and distributed.is_initialized():
        processes, process = distributed.get_world_size(), distributed.get_rank()
    worker = get_worker_info()
    workers, place = (worker.num_workers, worker.id) if worker else (1, 0)
    return islice(rows, process * workers + place, None, processes * workers)


def rows_in_order(rows: Rows, prefix: str) -> Iterator[dict[str, Any]]:
    """All rows with their `sample_id`s, which are those of `sources.open_source` without streaming.

    `prefix` is that of `sources.row_prefix`.
    """
    position = 0
    for batch in rows.iter(_ROWS_AT_ONCE):  # iter(rows) is slower, and splits a stream over DataLoader workers
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            row.setdefault("sample_id", row.get("__key__", f"{prefix}/{position}"))
            yield row | {"sample_id": str(row["sample_id"])}
            position += 1


class LabelledStream(IterableDataset):
    """A labelled image dataset read row by row, in flat memory; for evaluation.

    Yields rows as `LabelledImages` has them, and a `Skipped` for every image that cannot be read. Rows of classes that
    are not kept are passed over. Arguments are those of `load_labelled_images`, and the model's `image_processor`.

    Raises:
        InputError: if there is no such dataset, split, column or class; while reading, for a row without a label.
    """

    def __init__(
        self,
        name: str,
        split: str,
        image_processor: CLIPImageProcessorPil,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        image_column: str = "image",
        label_column: str = "label",
        class_names_file: str | None = None,
    ):
        source = open_labelled(name, split, image_column, label_column, class_names_file, streaming=True)
        self.name, self.image_processor = name, image_processor
        self.rows, self.row_prefix = source.rows, source.row_prefix
        self.image_column, self.label_column = source.image_column, source.label_column
        feature = (source.rows.features or {}).get(source.label_column)
        self.space = source.space or space_of_feature(feature, name, source.label_column)
        self.class_names = kept_classes(self.space.class_names, class_names, num_classes, name)
        self._numbers = label_reader(feature, self.space, name)
        self._new_label = {
            list(self.space.class_names).index(one): label for label, one in enumerate(self.class_names)
        }

    def __iter__(self) -> Iterator[dict[str, Any] | Skipped]:
        for row in my_share(rows_in_order(self.rows, self.row_prefix)):
            sample_id = row["sample_id"]
            known = read_label(row[self.label_column], self._numbers, self.space, sample_id, self.name)
            if (label := self._new_label.get(known)) is None:
                continue
            try:
                image = {"image": row[self.image_column], "label": label, "sample_id": sample_id}
                yield labelled_row(image, self.image_processor)
            except UnreadableImage as error:
                yield Skipped(sample_id, error.reason, label)
