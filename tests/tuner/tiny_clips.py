"""Tiny random CLIPs with a tokenizer, made from configs: no download, a few thousand parameters."""

import string
from collections.abc import Callable

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegModel,
    CLIPTokenizer,
    PreTrainedModel,
)

from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetModel

IMAGE_SIZE = 16
NUM_POSITIONS = 24
WIDTH = 16
PIECES = [*string.ascii_lowercase, ".", "(", ")", "-"]
MERGES = [
    ("p", "h"),
    ("ph", "o"),
    ("pho", "t"),
    ("phot", "o</w>"),
    ("o", "f</w>"),
    ("c", "a"),
    ("ca", "t</w>"),
]


def make_tokenizer() -> CLIPTokenizer:
    """Letters, some punctuation, and merges for the words of "a photo of a cat"; EOS is the last id."""
    pieces = [*PIECES, *(f"{piece}</w>" for piece in PIECES), *("".join(pair) for pair in MERGES)]
    vocab = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=MERGES)


class BatchNormConfig(CLIPConfig):
    model_type = "batch_norm_clip"


class BatchNormCLIP(CLIPModel):
    """A CLIP subclass that transformers does not ship, with batch norm in its vision tower."""

    config_class = BatchNormConfig

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        self.vision_model.pre_layrnorm = TokenBatchNorm(config.vision_config.hidden_size)


class TokenBatchNorm(torch.nn.BatchNorm1d):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden.transpose(1, 2)).transpose(1, 2)


def _clip_resnet() -> CLIPResNetModel:
    vision = {"depths": [1, 1, 1, 1], "width": 4, "num_attention_heads": 2, "image_size": IMAGE_SIZE}
    vision |= {"strides": [1, 2, 1, 1], "projection_dim": 12}
    text = towers()["text_config"]
    return CLIPResNetModel(CLIPResNetConfig(text_config=text, vision_config=vision, projection_dim=12))


AutoConfig.register("batch_norm_clip", BatchNormConfig)
AutoModel.register(BatchNormConfig, BatchNormCLIP)


def towers(eos_token_id: int | None = None) -> dict[str, dict[str, object]]:
    shape = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = make_tokenizer()
    text = {
        **shape,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": NUM_POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos_token_id or tokenizer.eos_token_id,
    }
    vision = {**shape, "hidden_size": 24, "image_size": IMAGE_SIZE, "patch_size": 8}
    return {"text_config": text, "vision_config": vision}


def _clip(eos_token_id: int | None = None) -> CLIPModel:
    return CLIPModel(CLIPConfig(**towers(eos_token_id), projection_dim=12))


VARIANTS: dict[str, Callable[[], PreTrainedModel]] = {
    "clip": _clip,
    "clip-resnet": _clip_resnet,
    "clip-legacy-eos": lambda: _clip(eos_token_id=2),
    "batch-norm-subclass": lambda: BatchNormCLIP(BatchNormConfig(**towers(), projection_dim=12)),
    "clipseg": lambda: CLIPSegModel(CLIPSegConfig(**towers(), projection_dim=12)),
}
