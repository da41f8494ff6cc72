"""Tiny random CLIPs with a tokenizer, made from configs: no download, a few thousand parameters."""

import string
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegModel,
    CLIPTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
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


def make_other_tokenizer(around: str) -> PreTrainedTokenizerFast:
    """The same words with other special tokens, whose ids are the lowest; `around` has `$A` for a text."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*specials, *PIECES, *(f"{piece}</w>" for piece in PIECES), *("".join(pair) for pair in MERGES)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    words = Tokenizer(models.BPE(vocab, MERGES, unk_token="<unk>", end_of_word_suffix="</w>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(around, special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def tokenizer_of(variant: str) -> PreTrainedTokenizerBase:
    """As the families have them: SigLIP's puts EOS after texts and nothing before, SigLIP 2's class puts nothing
    around them, fills up on the left and has spaces in its words, MetaCLIP 2's has a low EOS."""
    if variant == "siglip2":
        merges = [("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o")]
        pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *PIECES, *("".join(pair) for pair in merges)]
        return Siglip2Tokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges)
    if variant == "siglip":
        return make_other_tokenizer("$A </s>")
    return make_other_tokenizer("<s> $A </s>") if variant == "metaclip2" else make_tokenizer()


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


def _of_family(config: type, model: type[PreTrainedModel], **vision: object) -> PreTrainedModel:
    """A model of another family; their special tokens are those of `make_other_tokenizer`."""
    parts = towers(eos_token_id=2)
    parts["text_config"] |= {"vocab_size": 74, "bos_token_id": 0, "pad_token_id": 1, "projection_size": 24}
    torch.manual_seed(0)
    made = model(config(text_config=parts["text_config"], vision_config=parts["vision_config"] | vision))
    for name, value in made.named_parameters():
        if name.endswith("position_embedding.weight") or "probe" in name:
            torch.nn.init.normal_(value, std=0.5)  # so that places and padding count
    return made.eval()


VARIANTS: dict[str, Callable[[], PreTrainedModel]] = {
    "clip": _clip,
    "clip-resnet": _clip_resnet,
    "clip-legacy-eos": lambda: _clip(eos_token_id=2),
    "batch-norm-subclass": lambda: BatchNormCLIP(BatchNormConfig(**towers(), projection_dim=12)),
    "siglip": lambda: _of_family(SiglipConfig, SiglipModel),
    "siglip2": lambda: _of_family(Siglip2Config, Siglip2Model, num_patches=4),
    "metaclip2": lambda: _of_family(MetaClip2Config, MetaClip2Model),
    "clipseg": lambda: CLIPSegModel(CLIPSegConfig(**towers(), projection_dim=12)),
}
