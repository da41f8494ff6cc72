from hypothesis import given, settings
from hypothesis import strategies as st

from peft_cbpt.common.files import read_text
from peft_cbpt.data.imagenet import imagenet_classes
from peft_cbpt.data.labels import as_words, kept_classes, label_key, space_of_names

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


@settings(max_examples=100, deadline=None)
@given(NAMES)
def test_a_name_in_its_normal_form_stays(name):
    assert as_words(as_words(name)) == as_words(name)
    assert label_key(label_key(name)) == label_key(name) == label_key(as_words(name)) == label_key(f" {name}_")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_whole_numbers_are_one_however_they_are_written(number):
    assert label_key(number) == label_key(float(number)) == label_key(f"{number}.0") == str(number)


@settings(max_examples=100, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=8, unique=True))
def test_every_spelling_finds_its_class(written):
    space = space_of_names(written, "data")
    assert all(label_key(space.class_names[space.index(name)]) == label_key(name) for name in written)
    assert kept_classes(space.class_names, list(reversed(space.class_names)), None, "data")[::-1] == space.class_names


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(codec="cp1252", exclude_categories=["Cc"]), min_size=1))
def test_text_files_of_any_encoding_are_read(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("texts") / "file"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes(text.encode(encoding))
        assert read_text(file) == text.removeprefix("\ufeff")
    if not _valid(text.encode("cp1252")):
        file.write_bytes(text.encode("cp1252"))
        assert read_text(file) == text


def test_a_text_without_the_mark_of_its_encoding_is_read(tmp_path):
    (tmp_path / "names.txt").write_bytes("airplane\r\ncat\r\n".encode("utf-16-le"))
    assert read_text(tmp_path / "names.txt").split() == ["airplane", "cat"]


def _valid(content):
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def test_the_names_of_imagenet_stay_apart():
    names = [one.name for one in imagenet_classes()]
    assert len(set(map(label_key, names))) == len(names) and list(map(as_words, names)) == names
