"""Image-caption pairs for poisoning, fine-tuning and CleanCLIP, from wherever they are."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import datasets
from torch.utils.data import Dataset, IterableDataset
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.columns import Rows, find_column, with_images
from peft_cbpt.data.decoding import UnreadableImage, model_pixels, read_image
from peft_cbpt.data.skipping import SkipLog, Skipped
from peft_cbpt.data.sources import open_source, row_prefix
from peft_cbpt.data.streams import my_share, rows_in_order
from peft_cbpt.pocket.dataset import PocketPairs

NO_CAPTION = "it has no caption"


class CaptionPairs(Dataset):
    """Pairs that can be read in any order.

    Rows are `pixel_values` (uint8 (3, H, W) at the model's resolution, not normalised), `caption` and `sample_id`.
    Pairs without a caption are left out; the place of one whose image cannot be read is taken by the next that can be,
    so that the length stands. Both are in `skipped`, the latter as they are met.

    Args:
        rows: Pairs of `image` (encoded), `caption` and `sample_id`.
        image_processor: The model's own.
    """

    def __init__(self, rows: datasets.Dataset, image_processor: CLIPImageProcessorPil):
        self._log = SkipLog()
        self.image_processor = image_processor
        captions, ids = list(rows["caption"]), list(rows["sample_id"])
        kept = [row for row, caption in enumerate(captions) if _words(caption)]
        for row in sorted(set(range(len(rows))).difference(kept)):
            self._log.add(Skipped(ids[row], NO_CAPTION))
        if not kept:
            raise InputError("none of the pairs has a caption: name the column of captions")
        self.rows = rows.select(kept)

    @property
    def skipped(self) -> list[Skipped]:
        """The pairs left out so far, in DataLoader workers too."""
        return self._log.entries()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for place in range(index, index + len(self)):
            row = self.rows[place % len(self)]
            try:
                return _pair(row, self.image_processor)
            except UnreadableImage as error:
                self._log.add(Skipped(error.sample_id, error.reason))
        raise InputError(f"none of the {len(self)} images can be read, the first of them {self.skipped[0].sample_id}")

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


class CaptionStream(IterableDataset):
    """Pairs in the order of the source, each read by one process and DataLoader worker; rows as `CaptionPairs`.

    Pairs without a caption or a readable image are left out, and listed in `skipped` as they are met.
    """

    def __init__(self, rows: Rows, prefix: str, image_processor: CLIPImageProcessorPil, limit: int | None = None):
        self._log = SkipLog()
        self.rows, self.prefix, self.image_processor, self.limit = rows, prefix, image_processor, limit

    @property
    def skipped(self) -> list[Skipped]:
        """The pairs left out so far, in DataLoader workers too; of this process."""
        return self._log.entries()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in my_share(islice(rows_in_order(self.rows, self.prefix), self.limit)):
            if not _words(row["caption"]):
                self._log.add(Skipped(row["sample_id"], NO_CAPTION))
                continue
            try:
                yield _pair(row, self.image_processor)
            except UnreadableImage as error:
                self._log.add(Skipped(error.sample_id, error.reason))


def load_caption_pairs(
    name: str,
    split: str,
    image_processor: CLIPImageProcessorPil,
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    streaming: bool = False,
    limit: int | None = None,
) -> CaptionPairs | CaptionStream | PocketPairs:
    """Open a dataset of image-caption pairs.

    Args:
        name: `pocket`; a folder of webdataset archives (`jpg` and `txt`, as CC3M is stored) or of parquet files; one
            such file; a folder written by `save_to_disk`; a CSV or TSV file with a header, whose image paths are
            relative to it; or a Hub id.
        split: Name of the split.
        image_processor: The model's own.
        image_column: Column of images; `image` also means a webdataset's `jpg`, `png` or `webp`.
        caption_column: Column of captions; `caption` also means `text` and `txt`.
        streaming: Go through the pairs in order instead of opening them for random access. `pocket` is never streamed.
        limit: Use only the first so many pairs; the pocket world draws any number, and needs one.

    Returns:
        A map-style dataset, or an iterable one if `streaming`.

    Raises:
        InputError: if there is no such dataset, split or column, or `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the number of pairs must be at least 1, it is {limit}")
    if name == "pocket":
        if limit is None:
            raise InputError("the pocket world draws any number of pairs: say how many")
        return PocketPairs(limit, split)
    rows = open_source(name, split, streaming)
    rows, image_column = with_images(rows, image_column, name, split)
    columns = rows.column_names or list(next(iter(rows)))
    caption_column = find_column(columns, caption_column, name)
    for column, wanted in ((image_column, "image"), (caption_column, "caption")):
        if column != wanted:
            rows = rows.remove_columns(wanted) if wanted in columns else rows
            rows = rows.rename_column(column, wanted)
    if streaming:
        return CaptionStream(rows, row_prefix(name, split), image_processor, limit)
    return CaptionPairs(rows.select(range(min(limit or len(rows), len(rows)))), image_processor)


def _words(caption: Any) -> str:
    return caption.strip() if isinstance(caption, str) else ""


def _pair(row: dict[str, Any], image_processor: CLIPImageProcessorPil) -> dict[str, Any]:
    pixels = model_pixels(read_image(row["image"], row["sample_id"]), image_processor)
    return {"pixel_values": pixels, "caption": _words(row["caption"]), "sample_id": row["sample_id"]}
