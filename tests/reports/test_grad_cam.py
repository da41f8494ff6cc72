from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder
from peft_cbpt.reports.grad_cam import MAP, TOKENS, Explained, grad_cam, grad_cam_figure, target_layer
from peft_cbpt.reports.style import png_bytes

pytest.importorskip("captum")

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = CLIPConfig(
    text_config=CLIPTextConfig(**SHAPE, vocab_size=10).to_dict(),
    vision_config=CLIPVisionConfig(**SHAPE, image_size=32, patch_size=8).to_dict(),
    projection_dim=12,
)


class ConvTower(nn.Module):
    """What Grad-CAM has to know of a ResNet: stages, and a feature at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.layer3 = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(8, 16, 2, 2), nn.ReLU())

    def forward(self, pixel_values, **_):
        return SimpleNamespace(pooler_output=self.layer4(self.layer3(pixel_values)).mean((2, 3)))


class ConvCLIP(CLIPModel):
    def __init__(self, config):
        super().__init__(config)
        self.vision_model = ConvTower()

    def get_image_features(self, pixel_values):
        output = self.vision_model(pixel_values)
        return SimpleNamespace(pooler_output=self.visual_projection(output.pooler_output))


@pytest.fixture(params=[CLIPModel, ConvCLIP], ids=["vit", "resnet"])
def clip(request):
    torch.manual_seed(0)
    return request.param(CONFIG).eval().requires_grad_(False)


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def text(n=4):
    return nn.functional.normalize(torch.randn(n, 12, generator=torch.Generator().manual_seed(2)), dim=-1)


def explain(clip, pixels, classes, text_features=None):
    encode_image = image_encoder(clip, PixelNormalizer())
    return grad_cam(
        encode_image, clip.vision_model, pixels, text() if text_features is None else text_features, classes
    )


def test_the_layer_is_found_by_structure(clip):
    layer, reshape = target_layer(clip.vision_model)
    if isinstance(clip, ConvCLIP):
        assert layer is clip.vision_model.layer4 and reshape is MAP
    else:
        assert layer is clip.vision_model.encoder.layers[-1].layer_norm1 and reshape is TOKENS
    with pytest.raises(ValueError, match="neither a ViT nor a ResNet"):
        target_layer(nn.Linear(1, 1))


def test_tokens_go_to_the_grid_and_back():
    tokens = torch.arange(2 * 10 * 3.0).view(2, 10, 3)
    grid = TOKENS.to_grid(tokens)
    assert grid.shape == (2, 3, 3, 3)
    assert torch.equal(grid[0, :, 1, 2], tokens[0, 1 + 3 + 2]), "rows of the image are rows of the grid"
    assert torch.equal(TOKENS.from_grid(grid, tokens), tokens)


def test_maps_are_heat_in_the_size_of_the_image(clip, pixels):
    maps = explain(clip, pixels, torch.tensor([0, 1, 2]))
    assert maps.shape == (3, 32, 32) and not maps.requires_grad
    assert maps.min() >= 0 and maps.max() == pytest.approx(1)
    again = explain(clip, pixels[1:2], torch.tensor([1]))
    torch.testing.assert_close(again[0], maps[1], rtol=1e-4, atol=1e-4)
    other = explain(clip, pixels, torch.tensor([3, 3, 3]))
    assert (other - maps).abs().max() > 0.01, "the class that is explained matters"


def test_explaining_leaves_the_model_as_it_was(clip, pixels):
    encode_image = image_encoder(clip, PixelNormalizer())
    before = encode_image(pixels)
    explain(clip, pixels, torch.tensor([0, 1, 2]))
    layer, _ = target_layer(clip.vision_model)
    assert not layer._forward_hooks and torch.equal(encode_image(pixels), before)
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_grad_cam_finds_the_part_that_speaks_for_the_class(pixels):
    """A tower that answers to red only, on an image that is red in one corner."""
    torch.manual_seed(0)
    clip = ConvCLIP(CONFIG).eval().requires_grad_(False)
    clip.visual_projection = nn.Linear(16, 12, bias=False).requires_grad_(False)
    tower = clip.vision_model
    for convolution in (tower.layer3[0], tower.layer4[0]):
        convolution.weight.zero_()
        convolution.bias.zero_()
    tower.layer3[0].weight[0, 0] = 1.0
    tower.layer4[0].weight[0, 0] = 1.0
    tower.layer4[0].bias[1] = 0.5
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0, 24:, 24:] = 1.0
    nothing = clip.get_image_features(torch.zeros(1, 3, 32, 32)).pooler_output
    red = clip.get_image_features(image).pooler_output
    class_feature = nn.functional.normalize(red - nothing, dim=-1)
    encode_image = image_encoder(clip, PixelNormalizer((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    (heat,) = grad_cam(encode_image, tower, image, class_feature, torch.tensor([0]))
    assert heat[28:, 28:].min() > 0.9 and heat[:16, :16].max() == 0


def test_the_figure_takes_one_image_or_several():
    shown = Explained(torch.rand(3, 8, 8), "a" * 90, torch.rand(8, 8), "b", torch.zeros(8, 8))
    for count in (1, 3):
        assert png_bytes(grad_cam_figure([("cat", shown, shown)] * count)).startswith(b"\x89PNG")
