"""Folders and labels as people have them: what can be read is read, what is left out is named, the rest says why."""

import pytest
from datasets import Image as ImageFeature
from PIL import Image

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.images import load_labelled_images
from tests.data.layouts import encoded, write_parquet, write_tar

PICTURE = Image.new("RGB", (8, 8), "red")


def write(root, *paths):
    """Small JPEG files, whatever their suffix; those with words for content are what they are."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        PICTURE.save(root / path, "JPEG")


def spoil(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"no picture")


def read(root, split="train", **options):
    rows = load_labelled_images(str(root), split, **options)
    names = rows.features["label"].names
    return {row["sample_id"]: names[row["label"]] for row in rows}


def test_images_are_known_by_their_content_and_other_files_are_counted(tmp_path, caplog):
    write(tmp_path, "train/cat/1.jpg", "train/cat/2.heic", "train/cat/3", "train/dog/1.jpg")
    spoil(tmp_path, "train/cat/4.heic", "train/cat/5.heic", "train/dog/notes.txt")
    assert len(read(tmp_path)) == 4
    assert "left out 3 files (2 .heic: cat/4.heic ..., 1 .txt: dog/notes.txt)" in caplog.text


def test_what_systems_leave_behind_is_neither_class_nor_image(tmp_path, caplog):
    write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg")
    spoil(tmp_path, "train/__MACOSX/cat/._1.jpg", "train/cat/._1.jpg", "train/cat/Thumbs.db", "train/.ipynb/1.jpg")
    assert set(read(tmp_path).values()) == {"cat", "dog"} and not caplog.text


def test_a_class_has_the_images_of_its_sub_folders(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "train/cat/sub/2.jpg", "train/dog/one/1.jpg")
    assert read(tmp_path) == {
        "train/cat/1.jpg": "cat",
        "train/cat/sub/2.jpg": "cat",
        "train/dog/one/1.jpg": "dog",
    }


def test_of_folders_of_folders_the_innermost_are_classes_and_are_named(tmp_path, caplog):
    write(tmp_path, "train/animals/cat/1.jpg", "train/vehicles/ship/1.jpg")
    assert set(read(tmp_path).values()) == {"cat", "ship"}
    assert "classes are the innermost folders, animals/cat, vehicles/ship" in caplog.text


def labels(root, *values):
    picture = {"bytes": encoded(PICTURE), "path": None}
    return write_parquet(root / "0.parquet", {"image": [picture] * len(values), "label": values}, image=ImageFeature())


@pytest.mark.parametrize(
    "values, names",
    [
        ([0.0, 2.0, 1.0], ["zero", "two", "one"]),
        (["0.0", "2.0", " 1"], ["zero", "two", "one"]),
        (["ZERO", "two ", "One"], ["zero", "two", "one"]),
    ],
)
def test_labels_are_read_however_they_are_written(tmp_path, values, names):
    labels(tmp_path, *values)
    (tmp_path / "names").write_text("zero\none\ntwo\n")
    assert list(read(tmp_path, class_names_file=str(tmp_path / "names")).values()) == names


def test_spellings_of_one_name_are_one_class_with_spaces(tmp_path, caplog):
    write(tmp_path, "train/hot_dog/1.jpg", "train/hot dog/1.jpg", "train/Ship/1.jpg")
    assert set(read(tmp_path).values()) == {"hot dog", "Ship"}
    assert "'hot dog' and 'hot_dog' are taken for one class" in caplog.text
    assert set(read(tmp_path, class_names=["hot_dog", "ship"]).values()) == {"hot dog", "Ship"}


@pytest.mark.parametrize("codes", [("n02691156", "n02121808"), ("0", "1"), ("class_1", "class_2")])
def test_names_that_are_codes_are_warned_of(tmp_path, caplog, codes):
    write(tmp_path, *(f"train/{code}/1.jpg" for code in codes))
    read(tmp_path)
    assert "look like codes" in caplog.text and "class_names_file" in caplog.text
    (tmp_path / "names").write_text("".join(f"{code}\tthing {place}\n" for place, code in enumerate(codes)))
    caplog.clear()
    assert set(read(tmp_path, class_names_file=str(tmp_path / "names")).values()) == {"thing 0", "thing 1"}
    assert not caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_files_of_names_in_what_windows_writes(tmp_path, encoding):
    labels(tmp_path, 0, 1)
    (tmp_path / "names").write_bytes("jalapeño\r\npâté\r\n".encode(encoding))
    assert list(read(tmp_path, class_names_file=str(tmp_path / "names")).values()) == ["jalapeño", "pâté"]


def test_classes_that_are_not_kept_are_named(tmp_path, caplog):
    write(tmp_path, "test/cat/1.jpg", "test/dog/1.jpg", "test/ship/1.jpg")
    read(tmp_path, "test", class_names=["cat", "dog"])
    assert "left out 1 classes that are not kept: 'ship'" in caplog.text


def metadata(root):
    write(root, "train/a.jpg", "train/b.jpg")
    (root / "train" / "metadata.csv").write_text("file_name,label\na.jpg,cat\nb.jpg,dog\n")


def json_lines(root):
    write(root, "train/a.jpg", "train/b.jpg")
    lines = '{"file_name": "train/a.jpg", "label": "cat"}\n{"file_name": "train/b.jpg", "label": "dog"}\n'
    (root / "train.jsonl").write_text(lines)


def parquet_of_paths(root):
    write(root, "train/a.jpg", "train/b.jpg")
    write_parquet(root / "train-0.parquet", {"path": ["train/a.jpg", "train/b.jpg"], "label": ["cat", "dog"]})


@pytest.mark.parametrize("make", [metadata, json_lines, parquet_of_paths])
def test_tables_of_paths_are_read(tmp_path, make):
    make(tmp_path)
    assert read(tmp_path) == {"train/a.jpg": "cat", "train/b.jpg": "dog"}


def test_archives_with_json_beside_the_images(tmp_path):
    members = [("a.jpg", encoded(PICTURE, "jpg")), ("a.json", b'{"label": "cat", "width": 8, "exif": {"a": 1}}')]
    write_tar(tmp_path / "0.tar", [*members, ("b.jpg", members[0][1]), ("b.json", b'{"label": "dog"}')])
    assert read(tmp_path) == {"0/a": "cat", "0/b": "dog"}


def other_sidecars(root):
    write_tar(root / "0.tar", [("a.jpg", encoded(PICTURE, "jpg")), ("a.xml", b"<a/>")])


def no_such_paths(root):
    write_parquet(root / "0.parquet", {"path": ["nowhere/a.jpg"] * 2, "label": ["cat", "dog"]})


def numbers_for_images(root):
    write_parquet(root / "0.parquet", {"image": [1, 2], "label": ["cat", "dog"]})


def other_formats_only(root):
    write(root, "train/dog/1.jpg")
    spoil(root, "train/cat/1.heic", "train/cat/2.heic")


def one_name_twice(root):
    write(root, "train/animals/other/1.jpg", "train/vehicles/other/1.jpg")


def loose(root):
    write(root, "train/1.jpg")
    spoil(root, "train/notes.txt")


FAULTS = {
    other_sidecars: "no column 'label'",
    no_such_paths: "holds 'nowhere/a.jpg', and no such file",
    numbers_for_images: "is no Image nor paths of images",
    other_formats_only: r"empty of images.*2 .heic.*add images or remove it",
    one_name_twice: "'other' is there more than once",
    loose: r"no class folders but 2 files \(1 .jpg: 1.jpg, 1 .txt",
}


@pytest.mark.parametrize("make", FAULTS)
def test_what_cannot_be_read_says_what_is_there(tmp_path, make, caplog):
    make(tmp_path)
    with pytest.raises(InputError, match=FAULTS[make]):
        read(tmp_path)
    if make is other_sidecars:
        assert "beside them are .xml; labels are read from KEY.cls" in caplog.text


def test_a_missing_split_is_no_class(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "val/cat/1.jpg")
    with pytest.raises(InputError, match="no split 'test' but train, val"):
        read(tmp_path, "test")
