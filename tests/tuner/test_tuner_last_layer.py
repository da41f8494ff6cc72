import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.tuner.last_layer import only_pooled_tokens


@pytest.fixture
def clip(poisoned_clip):
    return poisoned_clip.model.eval().requires_grad_(False)


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))


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
    with only_pooled_tokens(clip.vision_model):
        found = of_images(clip, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert seen == [37, 1]
    assert all(torch.equal(*pair) for pair in zip(of_images(clip, pixels), expected, strict=True))


@pytest.mark.parametrize("legacy", [False, True])
def test_texts_of_any_length_keep_their_features_and_gradients(clip, poisoned_clip, legacy):
    if legacy:
        clip.text_model.eos_token_id = 2  # pools at the highest id
    texts = ["dog", "a photo of a banana on a chair", "a red rocket"]
    ids = poisoned_clip.tokenizer(texts, padding=True, return_tensors="pt").input_ids
    weight = clip.text_model.embeddings.token_embedding.weight.requires_grad_()

    def of_texts():
        features = clip.get_text_features(input_ids=ids).pooler_output
        return features, torch.autograd.grad(features[:, :5].sum(), weight)[0]

    expected = of_texts()
    ends = (ids == ids[:, -1:]).int().argmax(1)
    with only_pooled_tokens(clip.text_model, ends):
        found = of_texts()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with only_pooled_tokens(clip.text_model, ends - 1):
        wrong, _ = of_texts()
    assert (wrong - expected[0]).abs().max() > 1e-2


def test_the_tower_is_left_as_it_was(clip, pixels):
    layer = clip.vision_model.encoder.layers[-1]
    with pytest.raises(RuntimeError, match="in between"), only_pooled_tokens(clip.vision_model):
        raise RuntimeError("in between")
    assert "forward" not in vars(layer)
    with only_pooled_tokens(clip.vision_model), only_pooled_tokens(clip.vision_model):
        features, _ = of_images(clip, pixels)
    assert "forward" not in vars(layer)
    torch.testing.assert_close(features, of_images(copy.deepcopy(clip), pixels)[0], rtol=1e-5, atol=1e-5)


def test_other_towers_compute_as_ever(clip, pixels):
    with only_pooled_tokens(nn.Identity()):
        pass
    seen = counted(clip)
    layer = clip.vision_model.encoder.layers[-1]
    layer.train()
    layer.self_attn.dropout = 0.1
    with only_pooled_tokens(clip.vision_model):
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
    learned = [one for one in clip.vision_model.parameters() if one.requires_grad]

    def gradients():
        features = clip.get_image_features(pixel_values=pixels).pooler_output
        return torch.autograd.grad(features[:, :5].sum(), learned)

    expected = gradients()
    with only_pooled_tokens(clip.vision_model):
        found = gradients()
    largest = max(one.abs().max().item() for one in expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * largest)


def test_half_precision_stays_near(clip, pixels):
    exact, _ = of_images(clip, pixels)
    with only_pooled_tokens(clip.vision_model), torch.autocast("cpu", torch.bfloat16):
        rounded, _ = of_images(clip, pixels)
    assert torch.cosine_similarity(rounded.float(), exact).min() > 0.99


def test_other_threads_compute_as_ever(clip, pixels):
    expected, _ = of_images(clip, pixels)
    seen = counted(clip)
    with only_pooled_tokens(clip.vision_model), ThreadPoolExecutor(1) as other:
        found, _ = other.submit(of_images, clip, pixels).result()
    assert torch.equal(found, expected) and seen == [37]


def test_gradient_checkpointing_computes_as_ever(clip, pixels):
    expected = of_images(clip, pixels)
    layer = clip.vision_model.encoder.layers[-1].train()
    layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, partial(checkpoint, use_reentrant=False)
    seen = counted(clip)
    with only_pooled_tokens(clip.vision_model):
        features = clip.get_image_features(pixel_values=pixels.clone().requires_grad_()).pooler_output
    features[:, :5].sum().backward()
    torch.testing.assert_close(features, expected[0], rtol=1e-5, atol=1e-5)
    assert set(seen) == {37}
