"""SigLIP, SigLIP 2 and MetaCLIP 2 through the one loader: images and texts as their own processors have them."""

import string

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    MetaClip2Config,
    MetaClip2Model,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.errors import InputError
from peft_cbpt.data.decoding import model_pixels
from peft_cbpt.evaluation.measure import text_features
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.training.encoder_lora import image_tower_lora

SIDE, PLACES = 16, 24
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = {
    "siglip": (SiglipConfig, SiglipModel, SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}), {}),
    "siglip2": (
        Siglip2Config,
        Siglip2Model,
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=4),
        {"num_patches": 4},
    ),
    "metaclip_2": (
        MetaClip2Config,
        MetaClip2Model,
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        {},
    ),
}


PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_lowercase, "."]
SIGLIP_2_TOKENIZER = Siglip2Tokenizer(vocab={piece: index for index, piece in enumerate(PIECES)}, merges=[])


def built(kind):
    config, model, _, vision = KINDS[kind]
    tokenizer = SIGLIP_2_TOKENIZER if kind == "siglip2" else open_clip("pocket:clean").tokenizer
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": PLACES, **special}
    torch.manual_seed(0)
    made = model(
        config(text_config=SHAPE | text, vision_config=SHAPE | {"image_size": SIDE, "patch_size": 8} | vision)
    )
    return made.eval(), tokenizer


@pytest.fixture(params=KINDS)
def saved(request, tmp_path):
    model, tokenizer = built(request.param)
    processor = KINDS[request.param][2]
    for part in (model, tokenizer, processor):
        part.save_pretrained(tmp_path)
    return request.param, model, tokenizer, processor, str(tmp_path)


@torch.no_grad()
def test_it_opens_and_encodes_as_its_own_processor_and_tokenizer_ask(saved):
    kind, model, tokenizer, processor, folder = saved
    clip = open_clip(folder)
    assert type(clip.model) is type(model) and type(clip.tokenizer) is type(tokenizer)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    theirs = model.get_image_features(**processor(image, return_tensors="pt")).pooler_output
    pixels = model_pixels(image, clip.image_processor)[None].float() / 255
    ours = image_encoder(clip.model, clip.normalize)(pixels)
    torch.testing.assert_close(ours, F.normalize(theirs, dim=1), rtol=1e-4, atol=1e-5)
    texts = ["a photo of a banana.", "dog"]
    padding = {"padding": "max_length", "max_length": PLACES} if kind.startswith("siglip") else {"padding": True}
    ids = tokenizer(texts, return_tensors="pt", **padding).input_ids
    theirs = F.normalize(model.get_text_features(ids).pooler_output, dim=1)
    torch.testing.assert_close(text_features(clip.model, clip.tokenizer, texts), theirs, rtol=1e-4, atol=1e-5)


def test_pixels_get_a_gradient_and_every_layer_of_the_lora_learns(saved):
    clip = open_clip(saved[-1])
    clip.model.requires_grad_(False)
    adapted = get_peft_model(clip.model, image_tower_lora(clip.model, 2)).eval()
    pixels = torch.rand(2, 3, SIDE, SIDE, requires_grad=True)
    image_encoder(adapted.get_base_model(), clip.normalize)(pixels)[:, 0].sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    for name, one in adapted.named_parameters():
        if "lora_B" in name:
            assert one.grad is not None and one.grad.abs().sum() > 0, name
    assert not any("text_model" in name for name, one in adapted.named_parameters() if one.requires_grad)


def test_images_of_another_size_are_refused(tmp_path):
    model, tokenizer = built("siglip")
    for part in (model, tokenizer, SiglipImageProcessorPil(size={"height": 32, "width": 32})):
        part.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="must resize to both sides of the 16 pixels of the model"):
        open_clip(str(tmp_path))
