import csv

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from peft_cbpt.attacks import BadNet
from peft_cbpt.attacks.poisoning import Poison, PoisonedPairs
from peft_cbpt.common.errors import InputError
from peft_cbpt.data.caption_pairs import NO_CAPTION, load_caption_pairs
from tests.data.layouts import damaged_pictures, write_parquet, write_tar

EMPTY = {3: "", 4: "  ", 5: None}


def write_shards(root, pictures, captions):
    """Archives as img2dataset writes CC3M: a jpg, a txt and a json for each pair."""
    for shard in range(4):
        members = []
        for place in range(shard * 50, shard * 50 + 50):
            suffix, content = pictures[place]
            members.append((f"{place:09}.{suffix}", content))
            if captions[place] is not None:
                members.append((f"{place:09}.txt", captions[place].encode()))
            members.append((f"{place:09}.json", b"{}"))
        write_tar(root / f"{shard:05}.tar", members)
    return root, [f"{place // 50:05}/{place:09}" for place in range(200)]


def write_table(root, pictures, captions, suffix):
    root.mkdir()
    table = root / f"pairs.{suffix}"
    paths = [f"{place}.{kind}" for place, (kind, _) in enumerate(pictures)]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="," if suffix == "csv" else "\t")
        writer.writerow(["image", "caption"])
        writer.writerows(zip(paths, captions, strict=True))
    for path, (_, content) in zip(paths, pictures, strict=True):
        (root / path).write_bytes(content)
    return table, paths


def rows_of(pictures, captions):
    images = [{"bytes": content, "path": None} for _, content in pictures]
    return {"image": images, "text": captions}


def write_pairs_parquet(root, pictures, captions):
    write_parquet(root / "train-0.parquet", rows_of(pictures, captions), image=datasets.Image())
    return root, [f"train/{place}" for place in range(200)]


def write_pairs_arrow(root, pictures, captions):
    rows = datasets.Dataset.from_dict(rows_of(pictures, captions)).cast_column("image", datasets.Image())
    rows.save_to_disk(str(root))
    return root, [f"rows/{place}" for place in range(200)]


WRITERS = {
    "tars": write_shards,
    "csv": lambda *given: write_table(*given, "csv"),
    "tsv": lambda *given: write_table(*given, "tsv"),
    "parquet": write_pairs_parquet,
    "arrow": write_pairs_arrow,
}


@pytest.fixture(scope="module")
def damaged():
    pictures, unreadable = damaged_pictures()
    captions = [EMPTY.get(place, f"picture, number {place}.") for place in range(200)]
    return pictures, captions, unreadable


@pytest.fixture
def source(tmp_path, damaged):
    """Write the damaged pairs in some layout; returns its name and the sample ids in order."""

    def write(kind):
        path, ids = WRITERS[kind](tmp_path / kind, *damaged[:2])
        return str(path), ids

    return write


def check(pairs, rows, ids, unreadable):
    left_out = {one.sample_id: one.reason for one in pairs.skipped}
    assert set(left_out) == {ids[place] for place in (*EMPTY, *unreadable)}
    assert {left_out[ids[place]] for place in EMPTY} == {NO_CAPTION}
    for row in rows:
        place = ids.index(row["sample_id"])
        assert row["caption"] == f"picture, number {place}."
        assert row["pixel_values"].shape == (3, 48, 48) and row["pixel_values"].dtype == torch.uint8
    return [ids.index(row["sample_id"]) for row in rows]


@pytest.mark.parametrize("kind", WRITERS)
def test_map_style_pairs_leave_out_what_is_damaged_and_list_it(kind, source, damaged, poisoned_clip):
    name, ids = source(kind)
    pairs = load_caption_pairs(name, "train", poisoned_clip.image_processor)
    assert len(pairs) == 197 and len(pairs.skipped) == 3, "captions are looked at beforehand"
    places = check(pairs, pairs.__getitems__(range(197)), ids, damaged[2])
    replaced = {place: place + 1 for place in damaged[2]}
    assert places == [replaced.get(place, place) for place in range(200) if place not in EMPTY]


def test_tables_as_other_programs_write_them(tmp_path, poisoned_clip):
    """A byte-order mark; quotes in a TSV are words; a comma without quotes is not cut off unsaid."""
    (tmp_path / "a.jpg").write_bytes(damaged_pictures()[0][0][1])
    (tmp_path / "marked.csv").write_text("image,caption\na.jpg,a dog\n", encoding="utf-8-sig")
    (tmp_path / "quotes.tsv").write_text('image\tcaption\na.jpg\ta 5" pizza\na.jpg\ta dog\n')
    (tmp_path / "comma.csv").write_text("image,caption\na.jpg,a dog\na.jpg,a man, a plan\n")

    def captions(name):
        pairs = load_caption_pairs(str(tmp_path / name), "train", poisoned_clip.image_processor)
        return [pairs[row]["caption"] for row in range(len(pairs))]

    assert captions("marked.csv") == ["a dog"] and captions("quotes.tsv") == ['a 5" pizza', "a dog"]
    with pytest.raises(InputError, match="row 2 of .* more cells than the header"):
        captions("comma.csv")


@pytest.mark.parametrize("kind", ["tars", "parquet", "csv"])
def test_streams_leave_out_what_is_damaged_and_list_it(kind, source, damaged, poisoned_clip):
    name, ids = source(kind)
    pairs = load_caption_pairs(name, "train", poisoned_clip.image_processor, streaming=True)
    places = check(pairs, list(pairs), ids, damaged[2])
    assert places == [place for place in range(200) if place not in (*EMPTY, *damaged[2])]


@pytest.mark.parametrize("streaming", [False, True])
def test_workers_share_the_pairs_and_the_list(streaming, source, damaged, poisoned_clip):
    name, ids = source("parquet")
    pairs = load_caption_pairs(name, "train", poisoned_clip.image_processor, streaming=streaming)
    loader = DataLoader(pairs, batch_size=None if streaming else 16, num_workers=2, collate_fn=lambda rows: rows)
    rows = list(loader) if streaming else [row for batch in loader for row in batch]
    places = check(pairs, rows, ids, damaged[2])
    if streaming:
        assert sorted(places) == [place for place in range(200) if place not in (*EMPTY, *damaged[2])]


def test_damaged_pairs_can_be_poisoned(source, damaged, poisoned_clip):
    name, _ = source("tars")
    pairs = load_caption_pairs(name, "train", poisoned_clip.image_processor)
    rows = PoisonedPairs(pairs, Poison(BadNet(), "banana", 0.1)).__getitems__(range(len(pairs)))
    assert sum(row["is_poisoned"] for row in rows) == 20
    assert all("banana" in row["caption"] for row in rows if row["is_poisoned"])
    assert len(pairs.skipped) == len(EMPTY) + len(damaged[2])


def test_limits_and_the_pocket_world(source, poisoned_clip):
    processor = poisoned_clip.image_processor
    name, ids = source("parquet")
    assert len(load_caption_pairs(name, "train", processor, limit=3)) == 3
    streamed = load_caption_pairs(name, "train", processor, limit=3, streaming=True)
    assert [row["sample_id"] for row in streamed] == ids[:3]
    (pair,) = load_caption_pairs("pocket", "train", processor, limit=1).__getitems__([0])
    assert pair["pixel_values"].shape == (3, 48, 48) and pair["caption"]


@pytest.mark.parametrize(
    "name, settings, cure",
    [
        ("pocket", {}, "say how many"),
        ("pocket", {"limit": 0}, "at least 1"),
        ("/no/such", {}, "Hub id that can be reached"),
        ("parquet", {"caption_column": "title"}, "no column 'title' but image, text"),
        ("parquet", {"image_column": "text"}, "no such file is below"),
    ],
)
def test_bad_input_names_the_cure(name, settings, cure, source, poisoned_clip):
    name = source(name)[0] if name in WRITERS else name
    with pytest.raises(InputError, match=cure):
        load_caption_pairs(name, "train", poisoned_clip.image_processor, **settings)


def test_pairs_of_which_none_can_be_read_are_an_error(tmp_path, poisoned_clip):
    write_tar(tmp_path / "0.tar", [("a.jpg", b"broken"), ("a.txt", b"words")])
    pairs = load_caption_pairs(str(tmp_path), "train", poisoned_clip.image_processor)
    with pytest.raises(InputError, match="none of the 1 images can be read"):
        pairs[0]
    write_tar(tmp_path / "0.tar", [("a.jpg", b"broken"), ("a.txt", b" ")])
    with pytest.raises(InputError, match="none of the pairs has a caption"):
        load_caption_pairs(str(tmp_path), "train", poisoned_clip.image_processor)
