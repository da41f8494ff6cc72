"""Checkpoints that are on the Hub in other forms than transformers', by their id."""

import json
import warnings
from pathlib import Path

import pytest

from peft_cbpt.common.errors import InputError
from peft_cbpt.pocket.model import open_clip
from tests.convert.forms import HALF, in_shards, named, pickled, pixels, timm_files, transformers
from tests.convert.forms import open_clip as of_open_clip
from tests.convert.published_clips import tiny_weights
from tests.convert.reference import feature_difference
from tests.hub.loopback import Fault

ID = "lab/clip"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def opened(name: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return open_clip(name)


FORMS = {
    "OpenCLIP": of_open_clip(pixels(HALF, HALF), quick_gelu=True),
    "OpenCLIP in shards": in_shards,
    "a pickle of transformers": transformers(pickle=True),
    "transformers": transformers(),
}


@pytest.mark.parametrize(("form", "prefix"), [*((form, "") for form in FORMS), ("OpenCLIP", "hf-hub:")])
def test_an_id_opens_as_its_folder_does_and_offline_afterwards(form, prefix, hub, folder, monkeypatch):
    weights = tiny_weights("tiny-vit")
    FORMS[form](weights, folder)
    if form == "OpenCLIP":
        timm_files(folder)
    hub.upload(ID, folder)
    assert feature_difference(weights, opened(prefix + ID).model) < 1e-4
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.repositories.clear()
    assert feature_difference(weights, opened(ID).model) < 1e-4


def test_only_one_set_of_weights_is_downloaded(hub, folder):
    of_open_clip(pixels(HALF, HALF))(tiny_weights("tiny-vit"), folder)
    timm_files(folder)
    pickled("extra.bin", lambda weights: named(weights, "other."))(tiny_weights("tiny-vit"), folder)
    hub.upload(ID, folder)
    opened(ID)
    fetched = {
        request.rsplit("/", 1)[1] for request in hub.requests if request.startswith("GET") and "/resolve/" in request
    }
    assert "open_clip_model.safetensors" in fetched and not fetched & {"model.safetensors", "extra.bin"}


def test_a_download_that_breaks_is_one_line(hub, folder):
    of_open_clip(pixels(HALF, HALF))(tiny_weights("tiny-vit"), folder)
    hub.upload(ID, folder)
    hub.faults.append(Fault("GET .*open_clip_model", status=404, times=99))
    hub.faults.append(Fault("HEAD .*open_clip_model", status=404, times=99))
    with pytest.raises(InputError, match="cannot download the checkpoint of lab/clip") as refused:
        opened(ID)
    assert "\n" not in str(refused.value)


def test_what_is_not_there_or_another_model_is_refused(hub, folder):
    with pytest.raises(InputError, match="cannot read the config of the model 'lab/none'"):
        opened("lab/none")
    (folder / "config.json").write_text(json.dumps({"model_type": "chinese_clip"}))
    hub.upload(ID, folder)
    with pytest.raises(InputError, match="'chinese_clip' model, not a CLIP"):
        opened(ID)
