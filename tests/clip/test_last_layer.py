import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from peft_cbpt.clip.last_layer import only_class_token
from peft_cbpt.clip.pixels import image_encoder


@pytest.fixture
def clip(poisoned_clip):
    return poisoned_clip.model.eval().requires_grad_(False)


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def of_images(clip, pixels):
    pixels = pixels.clone().requires_grad_()
    features = clip.get_image_features(pixel_values=pixels).pooler_output
    return features, torch.autograd.grad(features[:, :5].sum(), pixels)[0]


def counted(clip):
    """How many tokens the last layer's MLP sees at each call."""
    seen, layer = [], clip.vision_model.encoder.layers[-1]
    layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


def test_images_keep_their_features_and_gradients(clip, pixels):
    seen = counted(clip)
    expected = of_images(clip, pixels)
    with only_class_token(clip.vision_model):
        found = of_images(clip, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert seen == [37, 1]
    assert all(torch.equal(*pair) for pair in zip(of_images(clip, pixels), expected, strict=True))


def test_the_tower_is_left_as_it_was(clip, pixels):
    layer = clip.vision_model.encoder.layers[-1]
    with pytest.raises(RuntimeError, match="in between"), only_class_token(clip.vision_model):
        raise RuntimeError("in between")
    assert "forward" not in vars(layer)
    with only_class_token(clip.vision_model), only_class_token(clip.vision_model):
        features, _ = of_images(clip, pixels)
    assert "forward" not in vars(layer)
    torch.testing.assert_close(features, of_images(copy.deepcopy(clip), pixels)[0], rtol=1e-5, atol=1e-5)


def test_other_towers_and_those_in_training_compute_as_ever(clip, pixels):
    with only_class_token(nn.Identity()):
        pass
    seen = counted(clip)
    clip.vision_model.train()
    with only_class_token(clip.vision_model):
        of_images(clip, pixels)
    assert seen == [37]


def test_a_compiled_tower_computes_as_ever(clip, poisoned_clip, pixels):
    encode = image_encoder(clip, poisoned_clip.normalize)
    expected = encode(pixels)
    seen = counted(clip)
    compiled = torch.compile(encode, backend="eager")
    torch.testing.assert_close(compiled(pixels), expected, rtol=1e-5, atol=1e-5)
    assert seen == [37] and "forward" not in vars(clip.vision_model.encoder.layers[-1])


@pytest.mark.parametrize("lora", [False, True])
def test_every_weight_gets_its_gradient(clip, pixels, lora):
    clip.requires_grad_(True)
    if lora:
        config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        clip = get_peft_model(clip, config).get_base_model()
    learned = [one for one in clip.eval().vision_model.parameters() if one.requires_grad]

    def gradients():
        features = clip.get_image_features(pixel_values=pixels).pooler_output
        return torch.autograd.grad(features[:, :5].sum(), learned)

    expected = gradients()
    with only_class_token(clip.vision_model):
        found = gradients()
    largest = max(one.abs().max().item() for one in expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * largest)
