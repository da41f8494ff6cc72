"""Exports give the adapter's logits where neither `peft` nor `peft_cbpt` can be imported, as docs/export.md says."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clips import IMAGE_SIZE, NUM_POSITIONS
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from peft_cbpt import CBPTConfig

GUIDE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
PIPELINE, MATRIX, ONNX = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.S)
CLASSES = ["cat", "Great Dane", "st. bernard", "toad"]
CASES = [
    (variant, position, dtype)
    for variant in ("clip", "clip-legacy-eos")
    for position in ("end", "middle", "front")
    for dtype in (torch.float32, torch.float16)
]
BLOCKED = """
import sys
sys.modules["peft"] = sys.modules["peft_cbpt"] = None
for name in ("peft", "peft_cbpt"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")
"""
# Runs the guide's snippets on every case; prints the largest differences from the adapter as JSON.
STRANGER = """
import json, torch
from pathlib import Path
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel

root, report = Path(sys.argv[1]), {}
pipeline_snippet, matrix_snippet = json.loads((root / "snippets.json").read_text())
image = Image.open(root / "image.png")
for case in sorted(root.glob("case-*")):
    wanted, base = load_file(case / "wanted.safetensors"), str(case / "base")
    clip_folder, head_folder, pixels = str(case / "clip"), str(case / "head"), wanted["pixels"]
    clip, tokenizer = CLIPModel.from_pretrained(clip_folder), AutoTokenizer.from_pretrained(clip_folder)
    classes = json.loads((case / "clip" / "classes.json").read_text())
    text = [classes["hypothesis_template"].format(name) for name in classes["class_names"]]
    text = tokenizer(text, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = clip(**text, pixel_values=wanted["pixels"]).logits_per_image
        captions = clip.get_text_features(**tokenizer("a photo of a cat.", return_tensors="pt")).pooler_output
        scope = dict(vars())
        exec(matrix_snippet, scope)
        exec(pipeline_snippet, scope)
    scores = {score["label"]: score["score"] for score in scope["scores"]}
    scores = torch.tensor([scores[name] for name in classes["class_names"]])
    found = {"clip": logits, "matrix": scope["logits"], "pipeline": scores, "captions": captions}
    report[case.name] = {name: (value - wanted[name]).abs().max().item() for name, value in found.items()}
    report[case.name]["type"] = type(clip).__name__
print(json.dumps(report))
"""


@pytest.fixture(scope="session")
def image_processor():
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)


def with_adapter(clip, tokenizer, position="end", class_names=CLASSES, **settings):
    """A `PeftModel` whose context is far from zero."""
    config = CBPTConfig(class_names=class_names, class_token_position=position, init_std=0.5, **settings)
    return get_peft_model(clip, config.tokenize(tokenizer)).eval()


@torch.no_grad()
def wanted_of(model, tokenizer, image_processor, image, pixels):
    """What the adapter says: as the model itself, and from its features in float32."""
    pixels = pixels.to(model.dtype)
    base = model.get_base_model()
    features = base.get_image_features(pixel_values=pixels).pooler_output.float()
    text = tokenizer("a photo of a cat.", return_tensors="pt")
    of_image = image_processor(image, return_tensors="pt").pixel_values.to(model.dtype)
    return {
        "pixels": pixels,
        "clip": model(pixel_values=pixels).logits_per_image,
        "matrix": base.logit_scale.float().exp()
        * torch.nn.functional.normalize(features, dim=-1)
        @ model.encode_class_prompts().T,
        "pipeline": model(pixel_values=of_image).logits_per_image[0].softmax(0),
        "captions": base.get_text_features(**text).pooler_output,
    }


@pytest.fixture(scope="module")
def differences(loaded_clips, tokenizer, image_processor, pixels, tmp_path_factory):
    """Exports every case, and runs the guide's snippets on them in one process without PEFT."""
    root = tmp_path_factory.mktemp("exports")
    image = Image.effect_noise((20, 24), 90).convert("RGB")
    image.save(root / "image.png")
    (root / "snippets.json").write_text(json.dumps([PIPELINE, MATRIX]))
    for number, (variant, position, dtype) in enumerate(CASES):
        case = root / f"case-{number:02}"
        torch.manual_seed(number)
        clip = CLIPModel(loaded_clips[variant].config).to(dtype)
        clip.load_state_dict(loaded_clips[variant].state_dict())
        clip.save_pretrained(case / "base")
        model = with_adapter(clip, tokenizer, position)
        model.add_adapter("other", CBPTConfig(class_names=["dog", "cow"], num_context_tokens=2).tokenize(tokenizer))
        model.set_adapter("default")
        wanted = wanted_of(model, tokenizer, image_processor, image, pixels)
        model.export("clip", case / "clip", tokenizer, image_processor)
        model.export("text_features", case / "head")
        save_file({name: value.contiguous() for name, value in wanted.items()}, case / "wanted.safetensors")
    command = [sys.executable, "-c", BLOCKED + STRANGER, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout).values(), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_exports_give_the_adapters_logits_without_peft(differences, case):
    found = differences[case]
    assert found.pop("type") == "CLIPModel"
    assert found["clip"] <= 1e-6 and found["captions"] <= 1e-6, found
    assert found["matrix"] <= 1e-5 and found["pipeline"] <= 1e-5, found


def test_the_matrix_agrees_with_a_half_precision_adapter_to_its_rounding(load_clip, tokenizer, pixels):
    model = with_adapter(load_clip("clip", torch.float16), tokenizer)
    wanted = wanted_of(model, tokenizer, lambda *_, **__: _Pixels(pixels), None, pixels)
    error = (wanted["clip"].float() - wanted["matrix"]).abs().max()
    assert 0 < error < 4 * torch.finfo(torch.float16).eps * wanted["matrix"].abs().max()


class _Pixels:
    def __init__(self, pixels):
        self.pixel_values = pixels


def test_the_active_adapter_is_exported(load_clip, tokenizer, image_processor, tmp_path):
    model = with_adapter(load_clip(), tokenizer)
    model.add_adapter("other", CBPTConfig(class_names=["dog", "cow"], num_context_tokens=2).tokenize(tokenizer))
    model.set_adapter("other")
    model.export("text_features", tmp_path / "head")
    model.export("clip", tmp_path / "clip", tokenizer, image_processor)
    head = load_file(tmp_path / "head" / "text_features.safetensors")["text_features"]
    torch.testing.assert_close(head, model.encode_class_prompts().detach())
    classes = json.loads((tmp_path / "clip" / "classes.json").read_text())
    assert classes == {"class_names": ["dog", "cow"], "hypothesis_template": "<|{0}:0|><|{0}:1|>{0}."}
    assert CLIPModel.from_pretrained(tmp_path / "clip").config.text_config.vocab_size == len(tokenizer) + 4


def test_exporting_changes_neither_model_nor_tokenizer(load_clip, image_processor, tokenizer, pixels, tmp_path):
    model = with_adapter(load_clip(), tokenizer).train()
    size, config = len(tokenizer), model.get_base_model().config.to_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.export("clip", tmp_path / "clip", tokenizer, image_processor)
    model.export("text_features", tmp_path / "head")
    assert len(tokenizer) == size and model.get_base_model().config.to_dict() == config
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.base_model.training and not model.base_model.model.vision_model.training


def test_rows_beyond_the_tokenizer_stay_unreachable(tokenizer, image_processor, loaded_clips, tmp_path):
    """An embedding padded to more rows than the tokenizer has words: the new words take the tokenizer's next ids."""
    config = copy.deepcopy(loaded_clips["clip"].config)
    config.text_config.vocab_size += 5
    clip = CLIPModel(config)
    model = with_adapter(clip, tokenizer)
    model.export("clip", tmp_path, tokenizer, image_processor)
    plain, words = CLIPModel.from_pretrained(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
    assert plain.config.text_config.vocab_size == len(words) == len(tokenizer) + 4 * len(CLASSES)


def test_tokenizer_and_image_processor_come_from_the_base(saved_clips, image_processor, tmp_path):
    folder = saved_clips["clip"]
    model = get_peft_model(CLIPModel.from_pretrained(folder), CBPTConfig(class_names=CLASSES))
    with pytest.raises(ValueError, match="pass image_processor"):
        model.export("clip", tmp_path)
    image_processor.save_pretrained(folder)
    try:
        model.export("clip", tmp_path)
    finally:
        (folder / "preprocessor_config.json").unlink()
    assert (tmp_path / "preprocessor_config.json").exists() and (tmp_path / "tokenizer.json").exists()


def refuse_unknown_kind(model, **_):
    model.export("onnx", "unused")


def refuse_disabled(model, **_):
    with model.disable_adapter():
        model.export("text_features", "unused")


@pytest.mark.parametrize(
    "variant, class_names, position, do, complaint",
    [
        ("clip", CLASSES, "end", refuse_unknown_kind, "one of text_features, clip"),
        ("clip", CLASSES, "end", refuse_disabled, "not purified"),
        ("batch-norm-subclass", CLASSES, "end", None, "transformers alone cannot load"),
        ("siglip", CLASSES, "end", None, "is a SigLIP, which is not written as one"),
        ("clip", ["cat", "washington d.c."], "front", None, "'washington d.c.' cannot be written as text"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    load_clip, tokenizer, image_processor, tmp_path, variant, class_names, position, do, complaint
):
    model = with_adapter(load_clip(variant), tokenizer, position, class_names)
    with pytest.raises(ValueError, match=complaint):
        if do:
            do(model)
        model.export("clip", tmp_path, tokenizer, image_processor)
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


def test_a_name_that_ends_with_a_period_can_be_exported_at_the_end(load_clip, tokenizer, image_processor, tmp_path):
    with_adapter(load_clip(), tokenizer, "end", ["cat", "washington d.c."]).export(
        "clip", tmp_path, tokenizer, image_processor
    )


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # from inside torch.onnx
def test_tower_and_matrix_run_in_onnx(load_clip, tokenizer, pixels, tmp_path, monkeypatch):
    """The guide's last snippet; the graph takes another batch size than the one it was traced with."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    model = with_adapter(load_clip(), tokenizer)
    wanted = model(pixel_values=pixels).logits_per_image.detach()
    model.export("text_features", tmp_path)
    model.unload().save_pretrained(tmp_path / "base")
    scope = {"base": str(tmp_path / "base"), "head_folder": str(tmp_path), "pixels": pixels[:2]}
    exec(MATRIX, scope)
    exec(ONNX, scope)
    session = onnxruntime.InferenceSession(str(tmp_path / "classifier.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-4)


def test_prompts_of_the_longest_length_are_exported(load_clip, tokenizer, image_processor, tmp_path):
    model = with_adapter(load_clip(), tokenizer, num_context_tokens=NUM_POSITIONS - 6, class_names=["cat", "cat a"])
    model.export("clip", tmp_path, tokenizer, image_processor)
    assert CLIPModel.from_pretrained(tmp_path).config.text_config.max_position_embeddings == NUM_POSITIONS
