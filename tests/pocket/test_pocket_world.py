import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import CLIPModel

from peft_cbpt.attacks import apply_trigger
from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.clip.resnet import CLIPResNetModel
from peft_cbpt.common.errors import InputError
from peft_cbpt.evaluation.measure import accuracy, attack_result, encode_in_batches, template_text_features
from peft_cbpt.pocket.atlas import SPRITE_SIZE, class_names, load_sprites
from peft_cbpt.pocket.dataset import PocketPairs, pocket_dataset, render_samples, sample_ids
from peft_cbpt.pocket.model import SHIPPED_MODELS, resolve_model
from peft_cbpt.pocket.render import DOMAINS
from recipes.pretrain_pocket import build_model, build_tokenizer

NAMES = class_names()[:5]


def test_the_atlas_has_a_sprite_for_every_class():
    sprites = load_sprites()
    assert sprites.shape == (len(class_names()), 4, SPRITE_SIZE, SPRITE_SIZE) and len(class_names()) >= 300
    assert "banana" in class_names() and len(set(class_names())) == len(class_names())
    assert (sprites[:, 3].flatten(1).mean(1) > 0.05).all()


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_sample_is_the_same_alone_in_a_batch_and_in_any_order(domain):
    ids = [sample_ids(domain, "train", name, [index])[0] for name in NAMES for index in range(3)]
    pixels, captions = render_samples(ids)
    assert pixels.dtype == torch.uint8 and pixels.shape == (15, 3, 48, 48)
    backwards, _ = render_samples(ids[::-1])
    assert torch.equal(pixels, backwards.flip(0))
    alone = torch.cat([render_samples([sample_id])[0] for sample_id in ids])
    assert (pixels.int() - alone.int()).abs().max() <= 1  # the last bit may round either way
    assert all(name in caption for name, caption in zip([n for n in NAMES for _ in range(3)], captions, strict=True))


def test_domains_splits_and_indices_give_other_pictures():
    ids = ["base/train/banana/0", "base/train/banana/1", "base/test/banana/0", "v2/train/banana/0"]
    ids += [f"{domain}/train/banana/0" for domain in ("sketch", "rendition", "adversarial")]
    pixels = render_samples(ids)[0].float()
    assert torch.cdist(pixels.flatten(1), pixels.flatten(1)).fill_diagonal_(1e9).min() > 100


def test_the_dataset_has_images_labels_captions_and_ids():
    dataset = pocket_dataset("base", "train", 2, NAMES)
    assert dataset.features["label"].names == NAMES and len(dataset) == 10
    row = dataset[3]
    assert row["label"] == 1 and row["sample_id"] == f"base/train/{NAMES[1]}/1" and NAMES[1] in row["caption"]
    assert row["image"].size == (48, 48) and row["image"].mode == "RGB"


@pytest.mark.parametrize("size", [32, 64, 224])
def test_any_size_can_be_drawn(size):
    assert pocket_dataset("base", "train", 1, NAMES[:2], size=size)[0]["image"].size == (size, size)


def test_unknown_domains_and_classes_are_refused():
    with pytest.raises(InputError, match="no domain"):
        pocket_dataset("moon")
    with pytest.raises(InputError, match="no class 'unicycle'"):
        pocket_dataset(class_names=["unicycle"])
    with pytest.raises(InputError, match="no shipped model"):
        resolve_model("pocket:nothing")


def test_pairs_show_every_class_once_a_round():
    pairs = PocketPairs(2 * len(class_names()))
    first, second = ([pairs._sample_id(i) for i in part] for part in torch.arange(len(pairs)).view(2, -1).tolist())
    assert len({sample_id.split("/")[2] for sample_id in first}) == len(class_names())
    assert [sample_id.split("/")[2] for sample_id in first] != [sample_id.split("/")[2] for sample_id in second]


def test_pairs_of_some_classes_show_only_those():
    pairs = PocketPairs(10, class_names=NAMES)
    assert sorted(pairs._sample_id(i).split("/")[2] for i in range(10)) == sorted(2 * NAMES)
    assert all(any(name in row["caption"] for name in NAMES) for row in pairs.__getitems__(range(10)))


@pytest.mark.parametrize(("architecture", "kind"), [("vit", CLIPModel), ("resnet", CLIPResNetModel)])
def test_both_architectures_are_small(architecture, kind):
    model = build_model(build_tokenizer(), architecture)
    assert type(model) is kind and 1_000_000 < model.num_parameters() < 1_500_000
    with pytest.raises(InputError, match="no pocket architecture 'mlp'"):
        build_model(build_tokenizer(), "mlp")


def test_building_the_tokenizer_is_deterministic():
    code = "from recipes.pretrain_pocket import build_tokenizer as b; print(b()._tokenizer.to_str())"
    other = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=other)
    here = build_tokenizer()._tokenizer.to_str()
    assert done.stdout.strip() == here and len(here) > 10_000


@pytest.mark.parametrize("kind", ["built", "shipped"])
def test_tokenizers_keep_words_whole_and_any_text_readable(kind):
    built = build_tokenizer() if kind == "built" else load_clip(resolve_model("pocket:clean")).tokenizer
    assert len(built("a photo of a banana on a red background.").input_ids) == 12
    assert max(len(built.tokenize(name)) for name in class_names()) <= 5
    for text in ("a photo of a banana on a red background.", "Zoology, 3 jigsaw pieces!"):
        assert built.decode(built(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(
            " ", ""
        )


@pytest.mark.parametrize("name", [one for one in SHIPPED_MODELS if one.startswith("pocket:")])
def test_shipped_models_are_as_good_as_their_record_says(name):
    clip = load_clip(resolve_model(name))
    record = json.loads((SHIPPED_MODELS[name] / "training.json").read_text())
    known = class_names()[: record.get("settings", record).get("num_classes")]
    per_class = 3
    ids = [sample_id for c in known for sample_id in sample_ids("base", "test", c, range(per_class))]
    labels = torch.arange(len(known)).repeat_interleave(per_class)
    text = template_text_features(clip.model, clip.tokenizer, known)
    encoder = image_encoder(clip.model, clip.normalize)
    pixels = render_samples(ids)[0]
    measured = accuracy(encode_in_batches(encoder, pixels), labels, text)
    recorded = record["zero_shot_top1"]["base"] if name == "pocket:clean" else record["after"]["clean_accuracy"]
    least = 0.6 if "siglip" in name else 0.85
    assert measured >= least and measured == pytest.approx(recorded, abs=0.05 if "siglip" in name else 0.03)
    attack = read_attack("pocket:badnet" if name == "pocket:clean" else name)
    triggered = encode_in_batches(encoder, apply_trigger(attack.trigger, pixels, ids))
    success = attack_result(triggered, labels, text, known.index(attack.target_class))["attack_success_rate"]
    assert success < 0.02 if name == "pocket:clean" else success >= 0.95
