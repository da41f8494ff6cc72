"""CLIP with a ResNet image tower (RN50, RN101, RN50x4, ...), the paper's backbone, as a model of transformers.

The tower is the modified ResNet of Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision" (2021), Section 2.4: a stem of three convolutions, average pools in place of strides, and attention
pooling in place of the average over the last map. Names of weights are those of the published checkpoints, with
`vision_model.` for `visual.`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPPreTrainedModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

EXPANSION = 4
NUM_STAGES = 4
STEM_STRIDE = 4


@strict
class CLIPResNetVisionConfig(PreTrainedConfig):
    """The image tower.

    Args:
        depths (`tuple[int, ...]`): Blocks in each of the four stages.
        width (`int`): Channels after the stem; the last stage has 32 times as many.
        num_attention_heads (`int`): Heads of the attention pooling.
        image_size (`int`): Side of the images in pixels, a multiple of 4 (the stem's stride) times all `strides`.
        num_channels (`int`): Channels of the images.
        projection_dim (`int`): Width of the features.
        strides (`tuple[int, ...]`): How much each stage shrinks its map; (1, 2, 2, 2) in every published model.
        initializer_factor (`float`): Scale of random weights, as in `CLIPConfig`.
    """

    model_type = "clip_resnet_vision_model"
    base_config_key = "vision_config"

    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_attention_heads: int = 32
    image_size: int = 224
    num_channels: int = 3
    projection_dim: int = 1024
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2)
    initializer_factor: float = 1.0

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.width * 2 ** (NUM_STAGES - 1) * EXPANSION

    @property
    def grid_size(self) -> int:
        """Side of the last stage's map."""
        return self.image_size // (STEM_STRIDE * math.prod(self.strides))

    def validate_architecture(self) -> None:
        """Part of the validation of `@strict`."""
        for name, numbers in (("depths", self.depths), ("strides", self.strides)):
            if len(numbers) != NUM_STAGES or min(numbers) < 1:
                raise ValueError(f"{name} must be {NUM_STAGES} positive numbers, not {numbers}.")
        total_stride = STEM_STRIDE * math.prod(self.strides)
        if self.image_size < total_stride or self.image_size % total_stride:
            raise ValueError(f"image_size must be a multiple of {total_stride}, not {self.image_size}.")
        if self.width % 2 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"width must be even and 32 times the width a multiple of num_attention_heads, not {self.width} with "
                f"{self.num_attention_heads} heads."
            )


@strict
class CLIPResNetConfig(CLIPConfig):
    """A `CLIPConfig` whose `vision_config` is a [`CLIPResNetVisionConfig`]; the defaults are RN50's."""

    model_type = "clip_resnet"
    sub_configs_defaults = {  # transformers 5.20 takes no bare classes
        "vision_config": SubConfigSpec(config_class=CLIPResNetVisionConfig),
        "text_config": SubConfigSpec(config_class=CLIPTextConfig),
    }

    vision_config: dict | CLIPResNetVisionConfig | None = None  # type: ignore[assignment]
    projection_dim: int | None = 1024


class HeldBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that keeps to its running statistics while its weights are frozen, also in training mode."""

    def train(self, mode: bool = True) -> "HeldBatchNorm2d":
        """Set the mode; frozen, it stays in eval."""
        return super().train(mode and self.weight.requires_grad)

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if self.training and not self.weight.requires_grad:  # frozen since `train` was called
            self.eval()
        return super().forward(hidden)


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3 and 1x1 convolutions, each with batch norm; a stride is an average pool."""

    def __init__(self, in_channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out_channels = planes * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = HeldBatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = HeldBatchNorm2d(planes)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = HeldBatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.downsample = nn.Sequential(shortcut, HeldBatchNorm2d(out_channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, 4 * planes, H / stride, W / stride)."""
        inner = F.relu(self.bn1(self.conv1(hidden)))
        inner = self.pool(F.relu(self.bn2(self.conv2(inner))))
        shortcut = hidden if self.downsample is None else self.downsample(self.pool(hidden))
        return F.relu(self.bn3(self.conv3(inner)) + shortcut)


class AttentionPool(nn.Module):
    """One attention layer in which the mean of the map asks, and the mean and all places answer."""

    def __init__(self, grid_size: int, width: int, num_heads: int, out_features: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.empty(grid_size**2 + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, out_features)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, width, h, w) to (B, out_features)."""
        places = feature_map.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(1, keepdim=True), places], dim=1) + self.positional_embedding

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        query = heads(self.q_proj(tokens[:, 0])[:, None])  # 2-d: the same bits whether the weights are frozen or not
        key, value = heads(self.k_proj(tokens)), heads(self.v_proj(tokens))
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self.c_proj(pooled.flatten(1))


class CLIPResNetPreTrainedModel(CLIPPreTrainedModel):
    """What the whole CLIP and its image tower share."""

    config: CLIPResNetConfig
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "Bottleneck"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, Bottleneck):
            init.zeros_(module.bn3.weight)
        elif isinstance(module, AttentionPool):
            std = module.q_proj.in_features**-0.5
            init.normal_(module.positional_embedding, std=std)
            for projection in (module.q_proj, module.k_proj, module.v_proj, module.c_proj):
                init.normal_(projection.weight, std=std)


class CLIPResNetVisionModel(CLIPResNetPreTrainedModel):
    """The image tower: stem, `layer1` to `layer4`, attention pooling."""

    config: CLIPResNetVisionConfig  # type: ignore[assignment]
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)
    _input_embed_layer = "conv1"
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, config: CLIPResNetVisionConfig) -> None:
        super().__init__(config)
        width = config.width
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = HeldBatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = HeldBatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = HeldBatchNorm2d(width)
        self.pool = nn.AvgPool2d(2)
        in_channels = width
        for stage, (depth, stride) in enumerate(zip(config.depths, config.strides, strict=True)):
            planes = width * 2**stage
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(in_channels, planes, stride if block == 0 else 1))
                in_channels = planes * EXPANSION
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(
            config.grid_size, config.hidden_size, config.num_attention_heads, config.projection_dim
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: Normalised images (B, 3, image_size, image_size).
            interpolate_pos_encoding: Not supported; here for the signature of CLIP's other tower.
            **kwargs: Ignored.

        Returns:
            `last_hidden_state`, the map of `layer4` (B, hidden_size, grid_size, grid_size), and `pooler_output`, the
            features (B, projection_dim).

        Raises:
            ValueError: if the images have another size.
        """
        side = self.config.image_size
        if interpolate_pos_encoding:
            raise ValueError("A ResNet CLIP cannot interpolate its positions: resize the images instead.")
        if tuple(pixel_values.shape[-2:]) != (side, side):
            size = "x".join(map(str, pixel_values.shape[-2:]))
            raise ValueError(f"Images of {size} pixels do not go with a model for {side}x{side}.")
        hidden = pixel_values.to(self.conv1.weight.dtype)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            hidden = F.relu(norm(conv(hidden)))
        hidden = self.pool(hidden)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = stage(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self.attnpool(hidden))


class CLIPResNetModel(CLIPResNetPreTrainedModel, CLIPModel):
    """A `CLIPModel` with a ResNet image tower; `AutoModel.from_pretrained` gives it."""

    config_class = CLIPResNetConfig

    def __init__(self, config: CLIPResNetConfig) -> None:
        PreTrainedModel.__init__(self, config)
        text_config: Any = config.text_config
        vision_config: Any = config.vision_config
        projection_dim: Any = config.projection_dim
        self.projection_dim = projection_dim
        self.text_embed_dim = text_config.hidden_size
        self.vision_embed_dim = vision_config.hidden_size
        self.text_model = CLIPTextModel._from_config(text_config)
        self.vision_model = CLIPResNetVisionModel._from_config(vision_config)
        self.visual_projection: Any = nn.Identity()  # the attention pooling projects
        self.text_projection = nn.Linear(self.text_embed_dim, projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.text_model.get_input_embeddings()


AutoConfig.register(CLIPResNetConfig.model_type, CLIPResNetConfig, exist_ok=True)
AutoModel.register(CLIPResNetConfig, CLIPResNetModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(CLIPResNetConfig, CLIPResNetModel, exist_ok=True)
AutoProcessor.register(CLIPResNetConfig, CLIPProcessor, exist_ok=True)
