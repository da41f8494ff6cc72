import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from peft_cbpt.common.errors import InputError
from peft_cbpt.data import streams
from peft_cbpt.data.images import LabelledImages, load_labelled_images
from peft_cbpt.data.skipping import Skipped
from peft_cbpt.data.streams import LabelledStream, my_share
from tests.data.layouts import damaged_pictures, encoded, write_parquet

NAMES = ["dog", "banana", "pizza", "chair"]


@pytest.fixture
def damaged(tmp_path):
    """Two parquet files of 100 damaged pictures each; the ids of those nobody can read."""
    pictures, unreadable = damaged_pictures()
    for number in range(2):
        part = pictures[number * 100 : number * 100 + 100]
        columns = {
            "image": [{"bytes": content, "path": None} for _, content in part],
            "label": [place % 4 for place in range(100)],
        }
        feature = datasets.ClassLabel(names=NAMES)
        write_parquet(tmp_path / "data" / f"test-{number}.parquet", columns, image=datasets.Image(), label=feature)
    return str(tmp_path / "data"), {f"test/{place}" for place in unreadable}


def test_a_stream_is_the_map_style_dataset_in_order(damaged, poisoned_clip):
    name, unreadable = damaged
    processor = poisoned_clip.image_processor
    wanted = ["pizza", "dog"]
    images = LabelledImages(load_labelled_images(name, "test", wanted), processor)
    labels = dict(zip(images.dataset["sample_id"], images.dataset["label"], strict=True))
    stream = list(LabelledStream(name, "test", processor, class_names=wanted))
    read = [row for row in stream if not isinstance(row, Skipped)]
    skipped = [row for row in stream if isinstance(row, Skipped)]
    assert [row["sample_id"] for row in read] == [one for one in labels if one not in unreadable]
    assert all(row["labels"] == labels[row["sample_id"]] for row in read)
    assert {one.sample_id for one in skipped} == unreadable & labels.keys() and all(one.reason for one in skipped)


def test_rows_without_a_split_have_the_same_ids_streamed_or_not(tmp_path, poisoned_clip):
    columns = {"image": [{"bytes": encoded(Image.new("RGB", (9, 9))), "path": None}] * 2, "label": ["dog", "cat"]}
    file = write_parquet(tmp_path / "all.parquet", columns)
    names = ["cat", "dog"]
    for name in (str(file), str(tmp_path)):
        for split in ("train", "test"):
            stream = LabelledStream(name, split, poisoned_clip.image_processor, class_names_file=names_file(tmp_path))
            assert load_labelled_images(name, split, names)["sample_id"][:] == ["rows/0", "rows/1"]
            assert [row["sample_id"] for row in stream] == ["rows/0", "rows/1"]


def names_file(folder):
    (folder / "names.txt").write_text("cat\ndog\n")
    return str(folder / "names.txt")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_every_row_once(damaged, poisoned_clip, workers):
    name, _ = damaged
    stream = LabelledStream(name, "test", poisoned_clip.image_processor)
    rows = list(DataLoader(stream, batch_size=None, num_workers=workers))
    ids = [row.sample_id if isinstance(row, Skipped) else row["sample_id"] for row in rows]
    assert sorted(ids) == sorted(f"test/{place}" for place in range(200))


def test_processes_and_workers_split_any_number_of_rows(monkeypatch):
    class Worker:
        num_workers = 3

    seen = []
    monkeypatch.setattr(streams.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(streams.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(streams, "get_worker_info", lambda: Worker)
    for process in range(2):
        for Worker.id in range(3):
            monkeypatch.setattr(streams.distributed, "get_rank", lambda process=process: process)
            seen += my_share(range(20))
    assert sorted(seen) == list(range(20))


def test_a_row_without_a_label_stops_the_stream(tmp_path, poisoned_clip):
    columns = {"image": [{"bytes": b"", "path": None}] * 2, "label": [0, -1]}
    feature = datasets.ClassLabel(names=NAMES)
    write_parquet(tmp_path / "0.parquet", columns, image=datasets.Image(), label=feature)
    with pytest.raises(InputError, match="row rows/1 of .* has no label"):
        list(LabelledStream(str(tmp_path), "test", poisoned_clip.image_processor))
