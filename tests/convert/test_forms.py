"""Every form that checkpoints have, through the one loader: the right features, or the right sentence."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peft_cbpt.common.errors import InputError
from peft_cbpt.convert.checkpoint_arguments import CheckpointArguments
from peft_cbpt.pocket.model import open_clip
from tests.convert.forms import LOADS, REFUSED, TOKENIZER
from tests.convert.published_clips import tiny_weights
from tests.convert.reference import feature_difference


def opened(source: Path, given: CheckpointArguments = CheckpointArguments()):  # noqa: B008
    """The CLIP, and what was said of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        of_a_file = {"tokenizer": TOKENIZER} if source.is_file() else {}
        clip = open_clip(str(source), checkpoint=replace(given, **of_a_file))
    return clip, [str(one.message) for one in said]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def test_the_table_is_large_enough():
    assert len(LOADS) + len(REFUSED) >= 25


@pytest.mark.parametrize("form", LOADS.values(), ids=LOADS)
def test_it_loads_with_the_right_features(form, folder):
    weights = {name: value.bfloat16().float() for name, value in tiny_weights(form.tower).items()}
    source = form.write(weights, folder)
    clip, said = opened(source, form.given)
    text = clip.model.config.text_config
    assert text.hidden_act == form.activation
    assert clip.normalize.mean == pytest.approx(form.mean, abs=1e-6)
    assert feature_difference(weights, clip.model) < 1e-4
    assert [one for one in said if one.startswith(form.says)] if form.says else not said, said
    again, said_again = opened(source, form.given)
    assert said_again == said
    assert all(
        torch.equal(one, other) for one, other in zip(clip.model.parameters(), again.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_the_right_sentence(name, folder, own_cache):
    write, message = REFUSED[name]
    source = write(tiny_weights("tiny-vit"), folder)
    with pytest.raises(InputError, match=message) as refused:
        opened(source)
    assert "\n" not in str(refused.value)
    assert not (folder / "executed").exists() and not [*own_cache.glob("models/*")]


FILE = "ViT-B-32.safetensors"
WITHOUT_EFFECT = {
    "a config that says otherwise": (
        "public poisoned models: OpenCLIP, raw pixels",
        {"image_mean": [0.5, 0.5, 0.5]},
        r"says image_mean \[0.0, 0.0, 0.0\], not \[0.5",
    ),
    "another activation": ("DFN: quick_gelu", {"activation": "gelu"}, "says activation quick_gelu, not gelu"),
    "a folder of transformers": ("OpenAI, MetaCLIP, TinyCLIP: transformers", {"activation": "gelu"}, "has no effect"),
    "weights that are not there": (
        "averaged weights alone",
        {"weights_key": "ema"},
        "no weights under 'ema' but state",
    ),
    "a pickle of transformers": (
        "transformers of old, in a pickle",
        {"image_std": [1.0, 1.0, 1.0]},
        "has an image processor, so image_std has no effect",
    ),
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_has_no_effect_is_refused(name, folder):
    form, given, message = WITHOUT_EFFECT[name]
    source = LOADS[form].write(tiny_weights("tiny-vit"), folder)
    with pytest.raises(InputError, match=message):
        opened(source, CheckpointArguments(**given))


WRONG = [
    ({"image_mean": [0.5]}, "image_mean takes three numbers"),
    ({"image_std": [0.0, 1.0, 1.0]}, "image_std must be positive"),
    ({"activation": "relu"}, "activation is quick_gelu or gelu, not 'relu'"),
    ({"interpolation": "nearest"}, "interpolation is bicubic or bilinear"),
    ({"resize_mode": "longest"}, "resize_mode is shortest or squash"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_settings(given, message):
    with pytest.raises(InputError, match=message):
        CheckpointArguments(**given)


def test_what_a_file_does_not_tell_can_be_said(folder):
    source = LOADS["OpenAI's weights in safetensors"].write(tiny_weights("tiny-vit"), folder)
    given = CheckpointArguments(
        activation="gelu",
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
        interpolation="bilinear",
        resize_mode="squash",
    )
    clip, said = opened(source, given)
    assert not said
    processor = clip.image_processor
    assert clip.model.config.vision_config.hidden_act == "gelu"
    assert clip.normalize.mean == (0, 0, 0) and clip.normalize.std == (1, 1, 1)
    assert processor.resample == 2 and processor.size == processor.crop_size == {"height": 16, "width": 16}
    plain, said = opened(source)
    assert len(said) == 2 and re.search("OpenAI's mean and standard deviation are taken", said[1])
    assert plain.normalize.std != clip.normalize.std


def test_settings_of_a_model_that_is_loaded_are_refused(poisoned_clip):
    with pytest.raises(InputError, match="loaded already"):
        open_clip(poisoned_clip, checkpoint=CheckpointArguments(activation="gelu"))


def test_weights_that_transformers_leaves_out_are_listed(folder):
    from safetensors.torch import load_file, save_file

    LOADS["OpenAI, MetaCLIP, TinyCLIP: transformers"].write(tiny_weights("tiny-vit"), folder)
    weights = load_file(folder / "model.safetensors") | {"classifier.weight": torch.ones(2, 32)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _, said = opened(folder)
    assert any(one.endswith("are left out: classifier.weight") for one in said)
