import json
from pathlib import Path

import pytest
import torch

from peft_cbpt.clip.resnet import CLIPResNetModel
from peft_cbpt.clip.templates import IMAGENET_TEMPLATES
from peft_cbpt.evaluation.measure import template_text_features
from peft_cbpt.photos.classes import names_by_wnid
from peft_cbpt.photos.model import ARCHITECTURES, build_model, build_tokenizer, enlarged
from peft_cbpt.pocket.model import open_clip, resolve_model


def test_the_tokenizer_knows_names_and_templates_and_cuts_other_words_into_pieces():
    tokenizer = build_tokenizer()
    for name in ("banana", "goldfish", "umbrella"):
        assert tokenizer.tokenize(name) == [f"{name}</w>"]
    assert max(len(tokenizer.tokenize(name)) for name in names_by_wnid().values()) <= 8
    assert all(len(tokenizer.tokenize(one.format(""))) < 2 * len(one.split()) + 4 for one in IMAGENET_TEMPLATES)
    assert len(tokenizer.tokenize("zyzzyva")) > 1
    assert tokenizer.decode(tokenizer("a zyzzyva über Öl").input_ids, skip_special_tokens=True) == "a zyzzyva über öl"


def test_the_shipped_clip_knows_its_captions_apart_and_says_how_it_was_made():
    clip = open_clip("photos:resnet")
    assert isinstance(clip.model, CLIPResNetModel) and clip.image_processor.crop_size["height"] == 64
    text = template_text_features(clip.model, clip.tokenizer, list(names_by_wnid().values()))
    alike = text @ text.T - torch.eye(len(text))
    assert len(text) == 202 and alike.max() < 0.995 and alike.mean() < 0.5
    record = json.loads(Path(resolve_model("photos:resnet"), "pretraining.json").read_text())
    assert record["zero_shot_top1"]["100 classes"] >= 0.5 and sum(record["epochs"]) == 54


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_enlarged_clip_keeps_its_weights(architecture):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    clip = build_model(tokenizer, architecture, 32).eval()
    assert isinstance(clip, CLIPResNetModel) == (architecture == "resnet")
    assert sum(one.numel() for one in clip.parameters()) < 8e6

    same, larger = (enlarged(clip, tokenizer, architecture, side).eval() for side in (32, 64))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = clip.get_image_features(pixel_values=images).pooler_output
        torch.testing.assert_close(same.get_image_features(pixel_values=images).pooler_output, wanted)
        features = larger.get_image_features(pixel_values=torch.randn(2, 3, 64, 64)).pooler_output
    assert features.shape == wanted.shape and features.isfinite().all()
    old, new = clip.state_dict(), larger.state_dict()
    differing = {name for name in old if old[name].shape != new[name].shape}
    assert len(differing) == 1 and "position" in next(iter(differing))
    (name,) = differing
    assert torch.equal(old[name][0], new[name][0])
    assert all(torch.equal(old[name], new[name]) for name in set(old) - differing)
