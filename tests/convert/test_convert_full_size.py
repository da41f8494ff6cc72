"""Full-size CLIPs with random weights: OpenAI's own model code and ours agree, and so do the names of weights."""

import pytest
import torch
from torch import nn

from peft_cbpt.convert.architecture import ARCHITECTURES, config_for, recognise
from peft_cbpt.convert.convert import build_model, checkpoint_of
from peft_cbpt.convert.layout import to_openai
from tests.convert.published_clips import openai_model

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
    state = model.state_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) == NUM_PARAMETERS[name]
    assert recognise(state) == name
    checkpoint = checkpoint_of(state)
    assert checkpoint.config.text_config.max_position_embeddings == 77
    assert checkpoint.config == config_for(name, 49408, 77, "quick_gelu")


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
