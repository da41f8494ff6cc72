"""Any checkpoint by its name opens as the model it was made from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from peft_cbpt.common.errors import InputError
from peft_cbpt.convert.layout import to_openai
from peft_cbpt.pocket.model import open_clip

PIXELS = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "interpolation": "bicubic", "resize_mode": "shortest"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFT_CBPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def write_open_clip(folder: Path) -> dict[str, torch.Tensor]:
    """The pocket CLIP as OpenCLIP's folders are laid out, with raw pixels, beside a config in timm's form."""
    clip = open_clip("pocket:clean")
    weights = {name: value.contiguous() for name, value in to_openai(clip.model.state_dict()).items()}
    vision = clip.model.config.vision_config
    folder.mkdir()
    clip.tokenizer.save_pretrained(folder)
    save_file(weights, folder / "open_clip_model.safetensors")
    model = {
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "text_cfg": {"heads": clip.model.config.text_config.num_attention_heads},
        "vision_cfg": {"head_width": vision.hidden_size // vision.num_attention_heads},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": PIXELS}))
    (folder / "config.json").write_text(json.dumps({"architecture": "vit", "num_classes": 0}))
    return weights


def test_a_transformers_folder_is_opened_where_it_is(cache: Path) -> None:
    open_clip("pocket:clean")
    assert not cache.exists()


def test_open_clip_folder_opens_through_the_cache_once(tmp_path: Path, cache: Path) -> None:
    weights = write_open_clip(tmp_path / "public")
    clip = open_clip(str(tmp_path / "public"))
    assert list(clip.image_processor.image_mean) == PIXELS["mean"]
    assert list(clip.image_processor.image_std) == PIXELS["std"]
    for name, value in to_openai(clip.model.state_dict()).items():
        assert torch.equal(value, weights[name]), name
    (folder,) = cache.iterdir()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    open_clip(str(tmp_path / "public"))
    assert [*cache.iterdir()] == [folder] and (folder / "model.safetensors").stat().st_mtime_ns == written
    (tmp_path / "public" / "open_clip_config.json").write_text(
        (tmp_path / "public" / "open_clip_config.json").read_text().replace("1.0", "0.5")
    )
    assert list(open_clip(str(tmp_path / "public")).image_processor.image_std) == [0.5] * 3


def test_what_cannot_be_read_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="is no checkpoint but text"):
        open_clip(str(tmp_path / "bad.pt"))
    assert not cache.exists()
