"""Full-size CLIPs with random weights: OpenAI's own model code and ours agree, and so do the names of weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from peft_cbpt.common.errors import InputError
from peft_cbpt.convert.architecture import config_of
from peft_cbpt.convert.convert import build_model, checkpoint_of
from peft_cbpt.convert.layout import to_openai
from peft_cbpt.convert.open_clip_config import OpenClipSettings
from tests.convert.published_clips import ARCHITECTURES, OPEN_CLIP, TINY, config_for, openai_model, weights_on_meta

# Parameters of the published models.
NUM_PARAMETERS = {
    "ViT-B/32": 151_277_313,
    "ViT-B/16": 149_620_737,
    "ViT-L/14": 427_616_513,
    "ViT-L/14@336px": 427_944_193,
    "RN50": 102_007_137,
    "RN101": 119_688_033,
    "RN50x4": 178_300_601,
    "RN50x16": 290_979_217,
    "RN50x64": 623_258_305,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_recognised_by_their_shapes(name):
    model = openai_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == NUM_PARAMETERS[name]
    assert config_of(model.state_dict(), "quick_gelu") == config_for(ARCHITECTURES[name])


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_so_are_those_that_open_clip_trains(name):
    config = config_for(OPEN_CLIP[name], activation="gelu")
    assert config_of(weights_on_meta(config), "gelu") == config


def test_heads_of_another_width_have_to_be_said():
    config = config_for(replace(OPEN_CLIP["ViT-B/32-256"], head_width=48))
    weights = weights_on_meta(config)
    said = OpenClipSettings(head_width=48)
    assert config_of(weights, "quick_gelu") != config == config_of(weights, "quick_gelu", said)
    with pytest.raises(InputError, match="width 768 has no heads of 100"):
        config_of(weights, "quick_gelu", OpenClipSettings(head_width=100))


def test_places_that_are_no_square_are_refused():
    weights = weights_on_meta(config_for(TINY["tiny-vit"])) | {"visual.positional_embedding": torch.empty(7, 128)}
    with pytest.raises(InputError, match="6 places, which are no square"):
        config_of(weights, "gelu")


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
@torch.no_grad()
def test_features_equal_those_of_openais_code(name):
    theirs = openai_model(name, "cpu")
    checkpoint = checkpoint_of(theirs.state_dict())
    ours = build_model(checkpoint)
    assert sum(parameter.numel() for parameter in ours.parameters()) == NUM_PARAMETERS[name]
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 224, 224, generator=generator)
    expected = theirs.encode_image(pixels)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours.get_image_features(pixel_values=pixels).pooler_output, expected, rtol=0, atol=1e-5)
    ids = torch.randint(1, 49406, (2, 77), generator=generator)
    ids[:, -1] = ids[1, 20] = 49407
    ids[1, 21:] = 0
    for activation in ("quick_gelu", "gelu"):
        if activation == "gelu":  # as OpenCLIP trains its own
            ours = build_model(checkpoint_of(theirs.state_dict(), "gelu"))
            for block in theirs.transformer.resblocks:
                block.mlp.gelu = nn.GELU()
        expected = theirs.encode_text(ids)
        assert expected.std() > 0.01
        torch.testing.assert_close(ours.get_text_features(input_ids=ids).pooler_output, expected, rtol=0, atol=1e-4)
    back = to_openai(ours.state_dict())
    for key, value in checkpoint.weights.items():
        assert torch.equal(back[key], value), key


@pytest.mark.long
@torch.no_grad()
def test_features_of_a_huge_one_equal_those_of_openais_code_with_its_heads_and_activation():
    theirs = openai_model("ViT-H/14", "cpu")
    ours = build_model(checkpoint_of(theirs.state_dict(), "gelu"))
    assert sum(parameter.numel() for parameter in ours.parameters()) == 986_109_441
    assert ours.config.vision_config.num_attention_heads == 16
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, 224, 224, generator=generator)
    ids = torch.randint(1, 49406, (1, 77), generator=generator)
    ids[:, -1] = 49407
    for found, expected in (
        (ours.get_image_features(pixel_values=pixels), theirs.encode_image(pixels)),
        (ours.get_text_features(input_ids=ids), theirs.encode_text(ids)),
    ):
        assert expected.std() > 0.01
        torch.testing.assert_close(found.pooler_output, expected, rtol=0, atol=1e-4)
