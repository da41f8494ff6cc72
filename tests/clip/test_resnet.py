import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from transformers import AutoModel, CLIPModel

import peft_cbpt  # noqa: F401
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.clip.resnet import CLIPResNetVisionConfig
from peft_cbpt.pocket.model import save_clip_folder
from peft_cbpt.tuner import CBPTConfig
from peft_cbpt.tuner.fingerprint import weights_fingerprint
from recipes.pretrain_pocket import build_image_processor, build_model, build_tokenizer

SIDE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random pocket ResNet CLIP, saved as every CLIP is."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("resnet")
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, "resnet")
    for name, value in model.vision_model.state_dict().items():
        if ".bn" in name or "downsample.1" in name:  # else the blocks start as identities
            value.copy_(torch.rand_like(value) + 0.5) if value.is_floating_point() else None
    save_clip_folder(path, model, tokenizer, build_image_processor())
    return path


@pytest.fixture
def clip(folder):
    return load_clip(str(folder))


@pytest.fixture
def pixels():
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def statistics(model):
    return [buffer.clone() for name, buffer in model.named_buffers() if "running" in name or "tracked" in name]


def test_the_auto_classes_load_it_in_a_fresh_process(folder):
    code = f"""
import importlib
import peft_cbpt.clip.resnet
importlib.reload(peft_cbpt.clip.resnet)  # registering twice is no error
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, CLIPModel
model = AutoModel.from_pretrained({str(folder)!r})
assert type(model) is type(AutoModelForZeroShotImageClassification.from_pretrained({str(folder)!r}))
assert "pixel_values" in AutoProcessor.from_pretrained({str(folder)!r}).model_input_names
print(type(model).__name__, isinstance(model, CLIPModel), AutoConfig.from_pretrained({str(folder)!r}).model_type)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["CLIPResNetModel", "True", "clip_resnet"], done.stderr


def test_features_do_not_depend_on_the_batch_and_survive_saving(clip, pixels, tmp_path):
    encode = image_encoder(clip.model, clip.normalize)
    features = encode(pixels)
    torch.testing.assert_close(features, torch.cat([encode(image[None]) for image in pixels]), rtol=0, atol=1e-5)
    assert (features[0] - features[1]).abs().max() > 1e-3
    clip.model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(image_encoder(again, clip.normalize)(pixels), features)
    assert weights_fingerprint(again) == weights_fingerprint(clip.model)


def test_a_trained_tower_learns_its_statistics_and_a_frozen_one_keeps_them(clip, pixels):
    model = clip.model.train()
    before = statistics(model)
    model.get_image_features(pixel_values=pixels)
    assert all(not torch.equal(old, new) for old, new in zip(before, statistics(model), strict=True))

    model.requires_grad_(False)
    frozen = statistics(model)
    in_training_mode = model.get_image_features(pixel_values=pixels).pooler_output  # frozen after the call of train()
    model.train()
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    again = model.get_image_features(pixel_values=pixels).pooler_output
    assert torch.equal(in_training_mode, again)
    assert torch.equal(model.eval().get_image_features(pixel_values=pixels).pooler_output, again)
    assert all(torch.equal(old, new) for old, new in zip(frozen, statistics(model), strict=True))
    assert any(module.training for module in model.requires_grad_(True).train().modules())


def test_gradients_reach_pixels_and_every_weight(clip, pixels):
    pixels.requires_grad_()
    model = clip.model.train()
    image_encoder(model, clip.normalize)(pixels)[:, 0].sum().backward()
    assert pixels.grad.abs().sum() > 0
    # a bias of the keys shifts all scores alike, so softmax takes it away
    unused = [name for name, weight in model.vision_model.named_parameters() if not weight.grad.abs().sum() > 0]
    assert set(unused) <= {"attnpool.k_proj.bias"}


def test_the_last_stage_can_be_hooked(clip, pixels):
    maps = []
    handle = clip.model.vision_model.layer4.register_forward_hook(lambda module, args, output: maps.append(output))
    outputs = clip.model.vision_model(pixel_values=clip.normalize(pixels))
    handle.remove()
    assert maps[0].shape == (3, clip.model.config.vision_config.hidden_size, 3, 3)
    assert torch.equal(maps[0], outputs.last_hidden_state)
    (gradient,) = torch.autograd.grad(outputs.pooler_output[:, 0].sum(), maps[0])
    assert gradient.abs().sum() > 0


def test_an_adapter_attaches_trains_saves_and_loads(clip, pixels, tmp_path, folder):
    names = ["dog", "banana", "red apple"]
    fingerprint = weights_fingerprint(clip.model)
    model = get_peft_model(clip.model, CBPTConfig(class_names=names).tokenize(clip.tokenizer)).train()
    before = statistics(model)
    logits = model(pixel_values=clip.normalize(pixels)).logits_per_image
    assert logits.shape == (3, 3)
    logits[:, 0].sum().backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "cbpt_context" in name} and len(trained) == 1
    assert all(torch.equal(old, new) for old, new in zip(before, statistics(model), strict=True))
    model.eval().save_pretrained(tmp_path)
    expected = model(pixel_values=clip.normalize(pixels)).logits_per_image
    for loaded in (
        PeftModel.from_pretrained(AutoModel.from_pretrained(folder, dtype=torch.float32), tmp_path),
        AutoPeftModel.from_pretrained(tmp_path, dtype=torch.float32),
    ):
        base = loaded.get_base_model()
        assert isinstance(base, CLIPModel) and weights_fingerprint(base) == fingerprint
        assert torch.equal(loaded.eval()(pixel_values=clip.normalize(pixels)).logits_per_image, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": [3, 4, 6]}, "depths must be 4"),
        ({"depths": [3, 4, 6, 0]}, "depths must be 4"),
        ({"strides": [1, 2]}, "strides must be 4"),
        ({"image_size": 100}, "multiple of 32"),
        ({"image_size": 0}, "multiple of 32"),
        ({"width": 63}, "width must be even"),
        ({"num_attention_heads": 7}, "multiple of num_attention_heads"),
    ],
)
def test_impossible_configs_are_refused(settings, message):
    with pytest.raises(Exception, match=message):
        CLIPResNetVisionConfig(**settings)


def test_a_tower_in_half_precision_takes_ordinary_pixels(folder, clip, pixels):
    half = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        features, whole = (model.get_image_features(pixels).pooler_output.float() for model in (half, clip.model))
    assert torch.cosine_similarity(features, whole).min() > 0.99


def test_images_of_another_size_are_refused(clip):
    with pytest.raises(ValueError, match="32x48 pixels do not go with a model for 48x48"):
        clip.model.get_image_features(pixel_values=torch.rand(1, 3, 32, 48))
    with pytest.raises(ValueError, match="cannot interpolate"):
        clip.model.get_image_features(pixel_values=torch.rand(1, 3, 48, 48), interpolate_pos_encoding=True)
