"""The pocket CLIPs: `CLIPModel`s of 1.3 to 1.4M parameters with a byte-level BPE tokenizer of their own."""

import copy
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedTokenizerBase,
)

from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetModel, CLIPResNetVisionConfig
from peft_cbpt.clip.templates import IMAGENET_TEMPLATES
from peft_cbpt.errors import InputError
from peft_cbpt.pocket.atlas import ASSETS, class_names
from peft_cbpt.pocket.render import BACKGROUND_COLOURS, IMAGE_SIZE

VOCABULARY_SIZE = 2000
PROJECTION_DIM = 128
ARCHITECTURES = ("vit", "resnet")
SHIPPED_MODELS = {
    "pocket:clean": ASSETS / "clip-clean",
    "pocket:badnet": ASSETS / "clip-badnet",
    "pocket:resnet-badnet": ASSETS / "clip-resnet-badnet",
}


def resolve_model(name_or_path: str) -> str:
    """The folder of a shipped pocket model, such as `pocket:clean`; anything else is returned as it is."""
    if not name_or_path.startswith("pocket:"):
        return name_or_path
    if name_or_path not in SHIPPED_MODELS:
        raise InputError(f"there is no pocket model {name_or_path!r}; choose one of {', '.join(SHIPPED_MODELS)}")
    return str(SHIPPED_MODELS[name_or_path])


def _corpus() -> Iterable[str]:
    names = class_names()
    yield from (template.format(" ") for template in IMAGENET_TEMPLATES)
    yield from (f"{name} on a {colour} background." for name in names for colour in BACKGROUND_COLOURS)


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges cover the words of the pocket captions; other words fall back to bytes."""
    return train_tokenizer(_corpus(), VOCABULARY_SIZE)


def train_tokenizer(corpus: Iterable[str], vocabulary_size: int) -> CLIPTokenizer:
    """A byte-level BPE CLIP tokenizer whose merges are learned from a corpus."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 2,
        initial_alphabet=letters,
        special_tokens=[letter + "</w>" for letter in letters],  # fixed ids, by which equal counts are ordered
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = list(dict.fromkeys(vocabulary))
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges)  # type: ignore[arg-type]


def build_model(tokenizer: CLIPTokenizer, architecture: str = "vit") -> CLIPModel:
    """An untrained pocket CLIP with a `vit` or a `resnet` image tower; its text tower keeps CLIP's 77 positions.

    Raises:
        InputError: for another architecture.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"there is no pocket architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=PROJECTION_DIM,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    if architecture == "resnet":
        resnet = CLIPResNetVisionConfig(
            depths=[1, 1, 1, 1],
            width=12,
            num_attention_heads=6,
            image_size=IMAGE_SIZE,
            projection_dim=PROJECTION_DIM,
            strides=[1, 2, 2, 1],
        )
        return CLIPResNetModel(
            CLIPResNetConfig(text_config=text.to_dict(), vision_config=resnet.to_dict(), projection_dim=PROJECTION_DIM)
        )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        projection_dim=PROJECTION_DIM,
        hidden_act="gelu",
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=PROJECTION_DIM)
    )


def build_image_processor() -> CLIPImageProcessorPil:
    """Resize and crop to the pocket resolution; normalise with CLIP's mean and standard deviation."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def save_clip_folder(
    folder: str | Path,
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: CLIPImageProcessorPil,
) -> None:
    """Write a normal HF folder: weights as fp16 safetensors, tokenizer and image processor."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
