"""Which base an adapter is for, and whether the file of its own weights is whole."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel

from peft_cbpt import BaseMismatchWarning, CBPTConfig
from peft_cbpt.tuner import weights_fingerprint
from peft_cbpt.tuner.fingerprint import tensors_fingerprint
from tests.tuner.test_tuner_errors import CLASSES

VARIANTS = ["clip", "batch-norm-subclass"]


def save_adapter(base: PreTrainedModel, folder: Path) -> None:
    config = CBPTConfig(class_names=CLASSES).record_base(base)
    get_peft_model(base, config).save_pretrained(folder)


def other_than(base: PreTrainedModel) -> PreTrainedModel:
    """The smallest change of one number in the last layer of the vision tower."""
    weight = base.visual_projection.weight.data
    weight.view(-1)[-1] = torch.nextafter(weight.view(-1)[-1], torch.tensor(9.0))
    base.name_or_path = "someone/other-clip"
    return base


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))


LOADERS = {
    "PeftModel": lambda base, folder: PeftModel.from_pretrained(base, folder),
    "low_cpu_mem_usage": lambda base, folder: PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True),
    "transformers": lambda base, folder: base.load_adapter(folder),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_another_base_warns_and_names_both(loader: str, variant: str, load_clip: Any, tmp_path: Path) -> None:
    save_adapter(load_clip(variant), tmp_path)
    rewrite_config(tmp_path, base_model_name_or_path="someone/clip")
    with pytest.warns(BaseMismatchWarning, match="made for someone/clip .* onto someone/other-clip "):
        LOADERS[loader](other_than(load_clip(variant)), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BaseMismatchWarning)
        LOADERS[loader](load_clip(variant), tmp_path)
        with pytest.raises(BaseMismatchWarning):
            LOADERS[loader](other_than(load_clip(variant)), tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_copies_in_half_precision_are_the_same_base(
    variant: str, dtype: torch.dtype, load_clip: Any, tmp_path: Path
) -> None:
    """Loaded in half precision from the original file, or stored in half precision and loaded in full."""
    base = load_clip(variant)
    save_adapter(base, tmp_path / "adapter")
    halves = [load_clip(variant, dtype=dtype), load_clip(variant, dtype=dtype).float()]
    for half in halves:
        with warnings.catch_warnings():
            warnings.simplefilter("error", BaseMismatchWarning)
            PeftModel.from_pretrained(half, tmp_path / "adapter")
    assert weights_fingerprint(halves[0]) != weights_fingerprint(base)


def test_strict_is_an_error_and_is_not_saved(load_clip: Any, tmp_path: Path) -> None:
    save_adapter(load_clip(), tmp_path)
    with pytest.raises(ValueError, match="made for .*clip.* onto someone/other-clip"):
        PeftModel.from_pretrained(other_than(load_clip()), tmp_path, strict=True)
    model = PeftModel.from_pretrained(load_clip(), tmp_path, strict=True)
    model.save_pretrained(tmp_path / "again")
    assert "strict" not in json.loads((tmp_path / "again" / "adapter_config.json").read_text())


def test_auto_peft_model_notices_a_base_that_was_replaced(load_clip: Any, tmp_path: Path) -> None:
    load_clip().save_pretrained(tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    config = CBPTConfig(class_names=CLASSES, tokenizer_name_or_path=load_clip().name_or_path).record_base(base)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    AutoPeftModel.from_pretrained(tmp_path / "adapter")
    other_than(AutoModel.from_pretrained(tmp_path / "base")).save_pretrained(tmp_path / "base")
    with pytest.warns(BaseMismatchWarning, match="made for .*base .* onto .*base "):
        AutoPeftModel.from_pretrained(tmp_path / "adapter")


def test_a_base_on_the_meta_device_and_adapters_without_fingerprint_are_not_checked(
    load_clip: Any, tmp_path: Path
) -> None:
    save_adapter(load_clip(), tmp_path)
    with torch.device("meta"):
        empty = type(load_clip())(load_clip().config)
    get_peft_model(empty, CBPTConfig.from_pretrained(tmp_path, strict=True), low_cpu_mem_usage=True)
    rewrite_config(tmp_path, base_fingerprint=None)
    PeftModel.from_pretrained(other_than(load_clip()), tmp_path, strict=True)


def test_the_fingerprint_does_not_depend_on_files(load_clip: Any, tmp_path: Path) -> None:
    clip = load_clip()
    expected = weights_fingerprint(clip)
    clip.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert weights_fingerprint(AutoModel.from_pretrained(tmp_path / "shards")) == expected
    clip.save_pretrained(tmp_path / "one")
    weights = load_file(tmp_path / "one" / "model.safetensors")
    save_file(dict(reversed(weights.items())), tmp_path / "one" / "model.safetensors", {"format": "pt", "by": "us"})
    assert weights_fingerprint(AutoModel.from_pretrained(tmp_path / "one")) == expected
    assert weights_fingerprint(clip.double()) == expected


def test_the_fingerprint_depends_on_names_shapes_and_buffers() -> None:
    weight = torch.arange(6.0)
    prints = {
        tensors_fingerprint(tensors)
        for tensors in (
            {"a": weight},
            {"b": weight},
            {"a": weight.view(2, 3)},
            {"a": weight.flip(0)},
            {"a": weight[:3], "b": weight[3:]},
            {"a": -weight},
        )
    }
    assert len(prints) == 6
    norm = nn.BatchNorm1d(2)
    before = weights_fingerprint(norm)
    norm.num_batches_tracked += 1
    assert weights_fingerprint(norm) == before
    norm.running_mean += 1
    assert weights_fingerprint(norm) != before


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def spoil_header(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:12] + b"\xff\xff" + content[14:])


DAMAGES = {
    "truncated": truncate,
    "header": spoil_header,
    "empty": lambda file: file.write_bytes(b""),
    "not safetensors": lambda file: file.write_text("<html>404</html>"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights(damage: str, load_clip: Any, tmp_path: Path) -> None:
    get_peft_model(load_clip(), CBPTConfig(class_names=CLASSES)).save_pretrained(tmp_path)
    PeftModel.from_pretrained(load_clip(), tmp_path)
    DAMAGES[damage](tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="damaged or incomplete") as raised:
        PeftModel.from_pretrained(load_clip(), tmp_path)
    assert "adapter_model.safetensors" in str(raised.value)


def test_an_adapter_that_other_software_saved_again_loads(load_clip: Any, tmp_path: Path) -> None:
    """As merging tools, rounding or transformers do: the weights change, the config does not."""
    save_adapter(load_clip(), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    changed = {name: value.bfloat16().float() + 1 for name, value in load_file(file).items()}
    save_file(changed, file)
    loaded = PeftModel.from_pretrained(load_clip(), tmp_path)
    (context,) = (value for name, value in loaded.state_dict().items() if "cbpt_context" in name)
    assert torch.equal(context, *changed.values())
