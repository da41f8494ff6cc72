"""A model that is read otherwise than it was trained is noticed, and what to mend is named."""

import re
import warnings

import pytest

from peft_cbpt.commands.parsing import run_command
from peft_cbpt.commands.scan import scan
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.evaluation.evaluate import evaluate
from peft_cbpt.evaluation.reading import activated, warn_of_reading
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import open_clip
from tests.conftest import FEW_CLASSES

NAMES = [*FEW_CLASSES, "crown", "ship", "whale", "tulip"]
PLAIN = "a photo of a {}."
RAW = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
WRONG_PIXELS = r"suspect the pixel statistics, which may be OpenAI's \(image_mean \[0.4815, .* it is right on 9\d|100"


@pytest.fixture
def clip():
    return open_clip("pocket:clean")


@pytest.fixture(scope="module")
def images():
    return pocket_dataset("base", "test", 7, NAMES)


def said_of(clip, images, names=NAMES):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_of_reading(clip, LabelledImages(images, clip.image_processor), names, PLAIN)
    return [str(one.message) for one in said]


def read_as(clip, **settings):
    for name, value in settings.items():
        setattr(clip.image_processor, name, value)


def test_a_model_that_is_read_as_trained_is_not_doubted(clip, images):
    assert said_of(clip, images) == []


def test_a_wrong_mean_is_named(clip, images):
    read_as(clip, **RAW)
    with pytest.warns(UserWarning, match=WRONG_PIXELS):
        warn_of_reading(clip, LabelledImages(images, clip.image_processor), NAMES, PLAIN)


def test_a_wrong_activation_is_named(clip, images):
    clip.model.config.text_config.hidden_act = "tanh"
    with activated(clip.model, "tanh"):
        (said,) = said_of(clip, images)
    assert re.search("suspect the activation, which is taken for tanh and may be (quick_)?gelu; so read it is", said)


def test_where_nothing_helps_names_are_suspected(clip, images):
    (said,) = said_of(clip, images, NAMES[::-1])
    assert "near chance: suspect the class names" in said


def test_one_class_says_nothing(clip):
    assert said_of(clip, pocket_dataset("base", "test", 3, NAMES[:1]), NAMES[:1]) == []


def test_the_model_is_left_as_it_was(clip):
    before = [module.activation_fn for module in clip.model.modules() if hasattr(module, "activation_fn")]
    with pytest.raises(RuntimeError), activated(clip.model, "relu"):
        raise RuntimeError
    assert before == [module.activation_fn for module in clip.model.modules() if hasattr(module, "activation_fn")]


def test_evaluate_warns(clip, images):
    read_as(clip, **RAW)
    with pytest.warns(UserWarning, match=WRONG_PIXELS):
        evaluate(clip, images)


def test_scan_warns_where_there_are_labels(clip, images, monkeypatch, tmp_path):
    read_as(clip, **RAW)
    monkeypatch.setattr("peft_cbpt.scanning.open_clip", lambda *_: clip)
    monkeypatch.setattr("peft_cbpt.scanning.search_model", lambda *_: pytest.fail("searched"))
    with pytest.warns(UserWarning, match=WRONG_PIXELS), pytest.raises(pytest.fail.Exception):
        run_command(
            scan, ["--model_name_or_path", "x", "--dataset_name", "pocket:base", "--output_dir", str(tmp_path)]
        )
