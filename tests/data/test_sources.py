import shutil

import datasets
import pytest
from PIL import Image

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.images import LabelledImages, load_labelled_images
from peft_cbpt.data.sources import open_source
from peft_cbpt.pocket.dataset import pocket_dataset
from tests.data.layouts import encoded, write_parquet, write_tar
from tests.data.test_images import write_folders

NAMES = ["dog", "banana", "pizza"]


@pytest.fixture
def reference():
    return pocket_dataset("base", "train", 2, NAMES)


def columns_of(dataset, labels):
    return {"image": [{"bytes": encoded(one), "path": None} for one in dataset["image"]], "label": labels}


def as_tar(root, dataset):
    members = []
    for number, row in enumerate(dataset):
        members += [(f"{number:03}.png", encoded(row["image"])), (f"{number:03}.cls", NAMES[row["label"]].encode())]
    write_tar(root / "train" / "000.tar", members[:6])
    write_tar(root / "train" / "001.tar", members[6:])


def as_parquet(root, dataset):
    columns = columns_of(dataset, dataset["label"])
    feature = datasets.ClassLabel(names=NAMES)
    write_parquet(root / "train-00000-of-00001.parquet", columns, image=datasets.Image(), label=feature)


def as_parquet_without_metadata(root, dataset):
    """Structs of bytes and words, as other tools write them."""
    columns = columns_of(dataset, [NAMES[label] for label in dataset["label"]])
    write_parquet(root / "train" / "0.parquet", columns)


def as_arrow(root, dataset):
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(root))


def as_folders(root, dataset):
    write_folders(root / "train", dataset)


@pytest.mark.parametrize("write", [as_tar, as_parquet, as_parquet_without_metadata, as_arrow, as_folders])
def test_every_layout_gives_the_same_pictures_under_the_same_names(tmp_path, reference, write, poisoned_clip):
    write(tmp_path / "data", reference)
    rows = load_labelled_images(str(tmp_path / "data"), "train", NAMES)

    def pictures(dataset):
        images = LabelledImages(dataset, poisoned_clip.image_processor)
        return {(row["labels"], row["pixel_values"].numpy().tobytes()) for row in map(images.__getitem__, range(6))}

    assert pictures(rows) == pictures(reference) and len(rows) == len(set(rows["sample_id"])) == 6
    again = load_labelled_images(str(tmp_path / "data"), "train", NAMES)
    assert again["sample_id"] == rows["sample_id"]


def test_sample_ids_are_paths_keys_or_places(tmp_path, reference):
    for write in (as_tar, as_parquet, as_folders):
        write(tmp_path / write.__name__, reference)
    first = {
        write.__name__: open_source(str(tmp_path / write.__name__), "train")["sample_id"][0]
        for write in (as_tar, as_parquet, as_folders)
    }
    assert first == {"as_tar": "train/000/000", "as_parquet": "train/0", "as_folders": "train/banana/2.png"}


CLASS_FILES = {
    "numbers": ("zero\none\ntwo\n", ["2", "0", "1", "2", "0", "1"], ["two", "zero", "one"] * 2),
    "padded numbers": ("zero\none\ntwo\n", ["002", "000", "001", "002", "000", "001"], ["two", "zero", "one"] * 2),
    "codes": ("n2\ta dog\nn1\ta cat\n", ["n1", "n2", "n1", "n1", "n2", "n2"], None),
    "integers": ("zero\none\ntwo\n", [2, 0, 1, 2, 0, 1], ["two", "zero", "one"] * 2),
}


@pytest.mark.parametrize("case", CLASS_FILES)
def test_a_file_names_classes_whose_labels_are_numbers_or_codes(tmp_path, reference, case):
    content, labels, expected = CLASS_FILES[case]
    expected = expected or [{"n2": "a dog", "n1": "a cat"}[label] for label in labels]
    (tmp_path / "names.txt").write_text(content)
    write_parquet(tmp_path / "data" / "0.parquet", columns_of(reference, labels), image=datasets.Image())
    rows = load_labelled_images(str(tmp_path / "data"), "test", class_names_file=str(tmp_path / "names.txt"))
    names = rows.features["label"].names
    assert [names[label] for label in rows["label"]] == expected
    assert names == [line.split("\t")[-1] for line in content.splitlines()]


def test_integer_folders_are_read_as_integers_with_a_file_of_names(tmp_path):
    for number in range(12):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / str(number) / f"picture-of-{number}.png")
    (tmp_path / "names.txt").write_text("".join(f"class {number}\n" for number in range(12)))
    rows = load_labelled_images(str(tmp_path / "data"), "test", class_names_file=str(tmp_path / "names.txt"))
    for row in rows:
        assert rows.features["label"].names[row["label"]].split()[-1] == row["sample_id"].split("-")[-1].split(".")[0]


@pytest.mark.parametrize("names", [[str(number) for number in range(12)], ["1", "2", "3"], ["001", "1", "banana"]])
def test_class_folders_with_numbers_for_names_keep_them(tmp_path, names):
    picture = write_folders(tmp_path / "drawn", pocket_dataset("base", "train", 1, NAMES[:1])) / NAMES[0]
    for name in names:
        shutil.copytree(picture, tmp_path / "train" / name)
    rows = load_labelled_images(str(tmp_path), "train")
    written = [(rows.features["label"].names[row["label"]], row["sample_id"].split("/")[1]) for row in rows]
    assert sorted(written) == sorted((name, name) for name in names)


def not_a_tar(root, dataset):
    root.mkdir()
    (root / "0.tar").write_bytes(b"no archive" * 100)


def cut_tar(root, dataset):
    as_tar(root, dataset)
    file = root / "train" / "000.tar"
    file.write_bytes(file.read_bytes()[:700])


def tar_without_images(root, dataset):
    write_tar(root / "0.tar", [("a.txt", b"words")])


def number_labels(root, dataset):
    write_parquet(root / "0.parquet", columns_of(dataset, ["0", "1", "10"] * 2), image=datasets.Image())


def missing_label(root, dataset):
    write_parquet(root / "0.parquet", columns_of(dataset, ["a", "b", None] * 2), image=datasets.Image())


def only_test(root, dataset):
    as_parquet(root, dataset)
    (root / "train-00000-of-00001.parquet").rename(root / "test-00000-of-00001.parquet")


def packed(root, dataset):
    root.mkdir()
    (root / "data.zip").write_bytes(b"")


def repeated_ids(root, dataset):
    columns = columns_of(dataset, dataset["label"]) | {"sample_id": [0, 1, 2, 3, 4, 2]}
    write_parquet(root / "0.parquet", columns, image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))


BAD_SOURCES = {
    "repeated ids": (repeated_ids, "", "sample_id holds 2 twice"),
    "not a tar": (not_a_tar, "", "cannot read the tar archive"),
    "cut tar": (cut_tar, "", "cannot read the tar archive"),
    "tar without images": (tar_without_images, "", "holds no images"),
    "numbers without names": (number_labels, "", "class_names_file"),
    "no label": (missing_label, "", "no label|class_names_file"),
    "no such split": (only_test, "", "no split 'train' but test-00000"),
    "zip archive": (packed, "data.zip", "unpack or convert"),
    "no image column": (as_parquet, "", "no column 'photo' but image"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources_are_one_line_that_names_the_cure(tmp_path, reference, case):
    write, name, cure = BAD_SOURCES[case]
    write(tmp_path / "data", reference)
    column = {"image_column": "photo"} if case == "no image column" else {}
    with pytest.raises(InputError, match=cure):
        load_labelled_images(str(tmp_path / "data" / name), "train", **column)


@pytest.mark.parametrize(
    "content, cure",
    [(None, "cannot read"), ("a\na\n", "twice"), ("a\tb\nc\n", "on every line"), ("", "on every line")],
)
def test_bad_files_of_class_names(tmp_path, reference, content, cure):
    if content is not None:
        (tmp_path / "names.txt").write_text(content)
    as_folders(tmp_path / "data", reference)
    with pytest.raises(InputError, match=cure):
        load_labelled_images(str(tmp_path / "data"), "train", class_names_file=str(tmp_path / "names.txt"))


def test_a_file_that_names_fewer_classes_is_refused(tmp_path, reference):
    (tmp_path / "names.txt").write_text("a\nb\n")
    as_folders(tmp_path / "data", reference)
    with pytest.raises(InputError, match="3 labels, but 2 classes"):
        load_labelled_images(str(tmp_path / "data"), "train", class_names_file=str(tmp_path / "names.txt"))
