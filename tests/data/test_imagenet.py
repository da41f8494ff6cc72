"""Every member of the ImageNet family from miniature copies in every layout, in scrambled order."""

import json

import datasets
import numpy as np
import pytest

from peft_cbpt.common.errors import InputError
from peft_cbpt.data import images, sources
from peft_cbpt.data.imagenet import IMAGENET_FAMILY, ImageNetVariant, find_variant, imagenet_classes
from peft_cbpt.data.images import LabelledImages, load_labelled_images
from peft_cbpt.data.streams import LabelledStream
from peft_cbpt.data.tars import open_member
from peft_cbpt.pocket.dataset import pocket_dataset
from tests.data.layouts import encoded, write_parquet, write_tar

BANANA = 954
CLASSES = imagenet_classes()
SUBSET = {name: [i for i, one in enumerate(CLASSES) if variant.subset in one.subsets]
          for name, variant in IMAGENET_FAMILY.items()}  # fmt: skip
# as the Hub's ImageNet names them: many like ours, most longer, and two of ours in each other's place
LONG_NAMES = [one.name if place % 3 == 0 else f"{one.name}, {one.wnid}" for place, one in enumerate(CLASSES)]
LONG_NAMES[0], LONG_NAMES[3] = LONG_NAMES[3], LONG_NAMES[0]


@pytest.fixture(scope="module")
def pictures():
    """One pocket picture for each of ImageNet's classes, PNG, all different."""
    drawn = pocket_dataset("base", "imagenet", 4, size=16)["image"][: len(CLASSES)]
    contents = [encoded(image) for image in drawn]
    assert len(set(contents)) == len(CLASSES)
    return contents


def scrambled(subset):
    return [subset[place] for place in np.random.default_rng(0).permutation(len(subset))]


def folders(root, subset, pictures, folder_name):
    for index in subset:
        folder = root / folder_name(index)
        folder.mkdir(parents=True)
        (folder / f"{index * 7919 % 1000}.png").write_bytes(pictures[index])
    return root


def wnid_folders(root, subset, pictures):
    return folders(root / "test", subset, pictures, lambda index: CLASSES[index].wnid).parent


def integer_folders(root, subset, pictures):
    return folders(root, subset, pictures, str)


def tar_of_folders(root, subset, pictures):
    members = [(f"imagenetv2-format-val/{index}/{index}.png", pictures[index]) for index in scrambled(subset)]
    return write_tar(root / "imagenetv2.tar", members)


def tar_as_published(root, subset, pictures):
    """Folders of wnids, file names with dots, and a README at the top, as ImageNet-A and -R come."""
    members = [("imagenet/README.txt", b"Natural adversarial examples"), ("imagenet/LICENSE.md", b"MIT")]
    for number, index in enumerate(scrambled(subset)):
        file = f"0.{number:06}_digital clock _ digital clock_0.865662.png"
        members.append((f"imagenet/{CLASSES[index].wnid}/{file}", pictures[index]))
    return write_tar(root / "imagenet.tar", members)


def webdataset(root, subset, pictures):
    """Two archives, `cls` counting the classes of the subset, as the wds_ family on the Hub."""
    order = scrambled(subset)
    for shard in range(2):
        members = []
        for number, index in enumerate(order[shard::2]):
            members += [(f"s{shard}{number:04}.cls", str(subset.index(index)).encode())]
            members += [(f"s{shard}{number:04}.png", pictures[index])]
        write_tar(root / "test" / f"{shard}.tar", members)
    return root


def encoded_column(order, pictures):
    return [{"bytes": pictures[index], "path": None} for index in order]


def parquet_of_wnids(root, subset, pictures):
    order = scrambled(subset)
    columns = {"image": encoded_column(order, pictures), "label": [CLASSES[index].wnid for index in order]}
    write_parquet(root / "data" / "test-00000-of-00001.parquet", columns, image=datasets.Image())
    return root


def parquet_with_a_column_of_wnids(root, subset, pictures):
    """As axiong/imagenet-r is downloaded."""
    order = scrambled(subset)
    columns = {"image": encoded_column(order, pictures), "wnid": [CLASSES[index].wnid for index in order]}
    write_parquet(root / "data" / "test-00000-of-00001.parquet", columns, image=datasets.Image())
    return root


def parquet_of_class_labels(root, subset, pictures, names=None):
    order = scrambled(subset)
    columns = {"image": encoded_column(order, pictures), "label": [subset.index(index) for index in order]}
    names = names or [CLASSES[index].wnid for index in subset]
    feature = datasets.ClassLabel(names=names)
    write_parquet(root / "test-00000.parquet", columns, image=datasets.Image(), label=feature)
    return root


def parquet_of_long_names(root, subset, pictures):
    return parquet_of_class_labels(root, subset, pictures, LONG_NAMES)


def arrow_of_sorted_folders(root, subset, pictures):
    """V2 as an image folder reads it: the folders' names sorted as strings are a ClassLabel."""
    order = scrambled(subset)
    columns = {"image": encoded_column(order, pictures), "label": [str(index) for index in order]}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    rows.cast_column("label", datasets.ClassLabel(names=sorted(map(str, subset)))).save_to_disk(str(root / "arrow"))
    return root / "arrow"


LAYOUTS = [
    ("imagenet", wnid_folders),
    ("imagenet", webdataset),
    ("imagenet", parquet_of_long_names),
    ("imagenet-v2", integer_folders),
    ("imagenet-v2", tar_of_folders),
    ("imagenet-v2", webdataset),
    ("imagenet-v2", arrow_of_sorted_folders),
    ("imagenet-sketch", wnid_folders),
    ("imagenet-r", wnid_folders),
    ("imagenet-r", webdataset),
    ("imagenet-r", tar_as_published),
    ("imagenet-a", tar_as_published),
    ("imagenet-r", parquet_of_wnids),
    ("imagenet-r", parquet_with_a_column_of_wnids),
    ("imagenet-a", webdataset),
    ("imagenet-a", parquet_of_class_labels),
]


def stored(image):
    if image["bytes"] is not None:
        return image["bytes"]
    path = image["path"]
    return open_member(path).read() if path.startswith("tar://") else open(path, "rb").read()


def check_labels(rows, pictures, subset):
    """Every picture is labelled with the name of the class it is a picture of, and there is one of each."""
    names = rows.features["label"].names
    assert names == [CLASSES[index].name for index in subset]
    shown = {pictures[index]: index for index in subset}
    rows = LabelledImages(rows, None).dataset
    named = [(shown[stored(row["image"])], names[row["label"]]) for row in rows]
    assert sorted(index for index, _ in named) == subset
    assert all(CLASSES[index].name == name for index, name in named)
    assert len(set(rows["sample_id"])) == len(subset)


@pytest.mark.parametrize("name, layout", LAYOUTS, ids=lambda value: getattr(value, "__name__", value))
def test_labels_come_out_right(tmp_path, pictures, name, layout):
    subset = SUBSET[name]
    path = layout(tmp_path, subset, pictures)
    rows = load_labelled_images(f"{name}:{path}", "test")
    check_labels(rows, pictures, subset)
    assert rows.features["label"].names.index("banana") == subset.index(BANANA)


def test_names_in_another_order_than_ours_are_refused(tmp_path, pictures):
    path = parquet_of_class_labels(tmp_path, SUBSET["imagenet"], pictures, LONG_NAMES[::-1])
    with pytest.raises(InputError, match="is not among"):
        load_labelled_images(f"imagenet:{path}", "test")


def test_the_label_spaces_are_those_of_the_family():
    assert {name: len(subset) for name, subset in SUBSET.items()} == {
        "imagenet": 1000, "imagenet-v2": 1000, "imagenet-sketch": 1000, "imagenet-r": 200, "imagenet-a": 200,
    }  # fmt: skip
    assert len(set(SUBSET["imagenet-r"]) & set(SUBSET["imagenet-a"])) == 86
    assert CLASSES[BANANA].name == "banana" and CLASSES[BANANA].wnid == "n07753592"
    assert len({one.name for one in CLASSES}) == 1000, "the adapter refuses names that occur twice"
    assert CLASSES == tuple(sorted(CLASSES, key=lambda one: one.wnid))


@pytest.mark.parametrize("layout", [integer_folders, tar_of_folders, arrow_of_sorted_folders])
def test_a_loader_that_sorts_the_folders_of_v2_as_strings_is_found_out(tmp_path, pictures, layout, monkeypatch):
    def sorted_strings(feature, space, name):
        return {number: number for number in range(len(feature.names))}

    path = layout(tmp_path, SUBSET["imagenet-v2"], pictures)
    monkeypatch.setattr(images, "label_reader", sorted_strings)
    with pytest.raises(AssertionError):
        check_labels(load_labelled_images(f"imagenet-v2:{path}", "test"), pictures, SUBSET["imagenet-v2"])


@pytest.mark.parametrize("name", ["imagenet-r", "imagenet-a"])
def test_a_loader_that_takes_labels_of_a_subset_for_imagenets_is_found_out(tmp_path, pictures, name, monkeypatch):
    whole = ImageNetVariant(IMAGENET_FAMILY[name].copies)
    path = webdataset(tmp_path, SUBSET[name], pictures)
    monkeypatch.setitem(IMAGENET_FAMILY, name, whole)
    first_names = [one.name for one in CLASSES[:200]]
    with pytest.raises(AssertionError):
        check_labels(load_labelled_images(f"{name}:{path}", "test", first_names), pictures, SUBSET[name])


class FakeHub:
    """Stands in for `datasets.load_dataset`: repositories are local folders."""

    def __init__(self, repositories):
        self.repositories, self.load, self.calls = repositories, datasets.load_dataset, []

    def __call__(self, name, data_files=None, split=None, streaming=False):
        self.calls.append((name, data_files, split, streaming))
        if name == "parquet":
            return self.load(name, data_files=data_files, split=split, streaming=streaming)
        if name == "webdataset":
            (pattern,) = data_files.values()
            repository, _, rest = pattern.removeprefix("hf://datasets/").partition(f"/{split}/")
            files = [str(file) for file in sorted((self.repositories[repository] / split).glob(rest))]
            return self.load("webdataset", data_files={split: files}, split=split, streaming=streaming)
        (file,) = self.repositories[name].rglob("*.parquet")
        return self.load("parquet", data_files={split: str(file)}, split=split, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "name, hub_id, layout, their_split",
    [
        ("imagenet", "ILSVRC/imagenet-1k", parquet_of_long_names, "validation"),
        ("imagenet-v2", "clip-benchmark/wds_imagenetv2", webdataset, "test"),
        ("axiong/imagenet-r", "axiong/imagenet-r", parquet_of_wnids, "test"),
        ("imagenet-a", "barkermrl/imagenet-a", parquet_of_class_labels, "train"),
    ],
)
def test_hub_copies_are_found_by_name(
    tmp_path, pictures, name, hub_id, layout, their_split, streaming, monkeypatch, poisoned_clip
):
    variant, _ = find_variant(name)
    subset = [i for i, one in enumerate(CLASSES) if variant.subset in one.subsets]
    layout(tmp_path, subset, pictures)
    hub = FakeHub({hub_id: tmp_path})
    monkeypatch.setattr(sources.datasets, "load_dataset", hub)
    if hub_id == "axiong/imagenet-r":  # its column of wnids is called wnid
        (file,) = tmp_path.rglob("*.parquet")
        datasets.Dataset.from_parquet(str(file)).rename_column("label", "wnid").to_parquet(str(file))
    if not streaming:
        check_labels(load_labelled_images(name, "test"), pictures, subset)
    else:
        wanted = ["banana", CLASSES[subset[0]].name]
        stream = LabelledStream(name, "test", poisoned_clip.image_processor, class_names=wanted)
        rows = list(stream)
        assert sorted(stream.class_names[row["labels"]] for row in rows) == sorted(wanted)
    assert hub.calls[0][2:] == (their_split, streaming) and hub_id in json.dumps(hub.calls[0])


@pytest.mark.parametrize(
    "error, cure",
    [("Dataset 'ILSVRC/imagenet-1k' is a gated dataset on the Hub.", "hf auth login"), ("No route", "can be reached")],
)
def test_a_dataset_that_is_out_of_reach_says_what_to_do(error, cure, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError(error)

    monkeypatch.setattr(sources.datasets, "load_dataset", fail)
    for name in ("imagenet", "imagenet-v2", "ILSVRC/imagenet-1k"):
        with pytest.raises(InputError, match=cure):
            load_labelled_images(name, "test")


def test_a_split_that_a_copy_lacks_is_named():
    with pytest.raises(InputError, match="no split 'train' but test"):
        load_labelled_images("imagenet-v2", "train")


def test_a_label_outside_the_subset_is_named(tmp_path, pictures):
    wnid_folders(tmp_path, [*SUBSET["imagenet-r"], 0], pictures)
    with pytest.raises(InputError, match=f"label '{CLASSES[0].wnid}' of .* is not among its 200 classes"):
        load_labelled_images(f"imagenet-r:{tmp_path}", "test")
