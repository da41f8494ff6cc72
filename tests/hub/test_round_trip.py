"""Purify with push, and load from the Hub: new processes, empty caches, real requests."""

import io
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file
from transformers import CLIPModel

from peft_cbpt import CBPTConfig
from peft_cbpt.hub.push import push_adapter
from peft_cbpt.pocket.model import resolve_model
from tests.hub.conftest import BASE_ID, JOB
from tests.hub.loopback import OWNER_TOKEN

PIXELS = "import torch\npixels = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))\n"
SAVE = "\nfrom safetensors.torch import save_file\nsave_file(logits, {file!r})\n"
THREE_WAYS = """
from peft import AutoPeftModel
auto = AutoPeftModel.from_pretrained("ada/purified", revision=revision).eval()
plain = AutoModel.from_pretrained({base!r})
plain.load_adapter("ada/purified", adapter_kwargs={{"revision": revision}} if revision else None)
loaders = [("peft", model), ("auto", auto), ("plain", plain)]
with torch.no_grad():
    logits = {{name: loaded(pixel_values=pixels).logits_per_image.contiguous() for name, loaded in loaders}}
"""


def local_logits(folder: Path) -> torch.Tensor:
    pixels = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(resolve_model("pocket:badnet")), folder)
    with torch.no_grad():
        return model(pixel_values=pixels).logits_per_image


def assert_no_trace(files: dict[str, bytes], *words: str) -> None:
    """None of the words stands in a file, nor in the compressed text of a picture."""
    for name, content in files.items():
        texts = [content]
        if name.endswith(".png"):
            texts += [str(value).encode() for value in Image.open(io.BytesIO(content)).info.values()]
        for text in texts:
            for word in words:
                assert word.encode() not in text, f"{word} in {name}"


def test_purify_push_and_load(hub, fresh, tmp_path):
    """The whole way: same logits by every loader, from the Hub, offline, and from `hf download`; no trace of us."""
    hub.upload(BASE_ID, Path(resolve_model("pocket:badnet")))
    push = ["--push_to_hub", "--hub_model_id", "ada/purified"]
    short = ["--dummy_triggers", "runner_up", "--inversion_steps", "2", "--warmup_epochs", "1"]
    fresh(
        "-m", "peft_cbpt", "purify", "--model_name_or_path", BASE_ID, *JOB, "--output_dir", "out", *push, *short,
        HF_TOKEN=OWNER_TOKEN,
    )  # fmt: skip
    work = tmp_path / "home-of-zaphod" / "work"
    assert sum("/commit/" in request for request in hub.requests) == 1
    files = hub.files("ada/purified")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "results.json", "before_after.png"} == (
        files.keys() - {".gitattributes"}
    )
    assert_no_trace(files, str(tmp_path), "zaphod", str(Path(__file__).parents[2]), OWNER_TOKEN)
    expected = local_logits(work / "out")
    assert torch.equal(expected, local_logits(work / "out"))

    card = files["README.md"].decode()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    assert f'"{BASE_ID}"' in snippet and '"ada/purified"' in snippet
    loading = "revision = None\n" + PIXELS + snippet + THREE_WAYS.format(base=BASE_ID)
    online, offline = str(tmp_path / "online"), str(tmp_path / "offline")
    fresh("-c", loading + SAVE.format(file=online), HF_HOME=str(tmp_path / "cache"))
    n_requests = len(hub.requests)
    fresh("-c", loading + SAVE.format(file=offline), HF_HOME=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    assert len(hub.requests) == n_requests
    for file in (online, offline):
        for name, logits in load_file(file).items():
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6, msg=f"{name} {file}")

    fresh("-m", "huggingface_hub.cli.hf", "download", "ada/purified", "--local-dir", str(tmp_path / "downloaded"))
    assert torch.equal(local_logits(tmp_path / "downloaded"), expected)


def test_the_pushed_card_is_valid(hub, adapter):
    push_adapter(adapter, "ada/purified")
    loaded = ModelCard.load("ada/purified")
    loaded.validate()
    assert loaded.data.library_name == "peft" and loaded.data.base_model == BASE_ID
    figures = {result.metric_name: result.metric_value for result in loaded.data.eval_results}
    results = yaml.safe_load(hub.files("ada/purified")["results.json"])
    assert figures["clean accuracy"] == pytest.approx(results["after"]["clean_accuracy"], abs=1e-6)
    measured = results["after"]["attacks"]["badnet"]
    assert figures["badnet: attack success rate"] == pytest.approx(measured["attack_success_rate"], abs=1e-6)
    broken = ModelCard(str(loaded).replace("library_name: peft", "library_name: [1]"))
    with pytest.raises(ValueError, match="library_name"):
        broken.validate()


def test_a_branch_and_a_tag_load_by_revision(hub, adapter, fresh, tmp_path):
    """Two adapters of one repository; each revision gives its own logits by every loader."""
    hub.upload(BASE_ID, Path(resolve_model("pocket:badnet")))
    push_adapter(adapter, "ada/purified", tag="v1")
    first = local_logits(adapter)
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(resolve_model("pocket:badnet")), adapter)
    for parameter in model.parameters():
        if parameter.shape == (6, 4, 96):
            parameter.data += 0.1
    model.save_pretrained(tmp_path / "second")
    config = CBPTConfig.from_pretrained(tmp_path / "second")
    config.base_model_name_or_path = BASE_ID
    config.save_pretrained(tmp_path / "second")
    push_adapter(tmp_path / "second", "ada/purified", revision="stronger")
    second = local_logits(tmp_path / "second")
    assert not torch.allclose(first, second, atol=1e-3)

    load = "import peft_cbpt\nfrom peft import PeftModel\nfrom transformers import AutoModel\n" + PIXELS
    load += "for revision in ('v1', 'stronger'):\n" + "".join(
        f"    {line}\n"
        for line in (
            f"base = AutoModel.from_pretrained({BASE_ID!r})\n"
            "model = PeftModel.from_pretrained(base, 'ada/purified', revision=revision, strict=True)"
            + THREE_WAYS.format(base=BASE_ID)
            + SAVE.format(file="FILE").replace("'FILE'", "revision")
        ).splitlines()
    )
    fresh("-c", load)
    work = tmp_path / "home-of-zaphod" / "work"
    for revision, expected in (("v1", first), ("stronger", second)):
        for name, logits in load_file(work / revision).items():
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6, msg=f"{name} {revision}")


def test_the_scan_finds_a_trace(tmp_path):
    """Proof of the check above: it sees a path in plain text and in a picture."""
    info = PngInfo()
    info.add_text("Source", "/home/zaphod/picture", zip=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    content = (tmp_path / "a.png").read_bytes()
    assert b"zaphod" not in content
    for files in ({"a.png": content}, {"a.json": b'"/home/zaphod"'}):
        with pytest.raises(AssertionError, match="zaphod in a"):
            assert_no_trace(files, "zaphod")
