"""The claim both ways: the backdoor wins before and loses after, and a clean CLIP stays as it is."""

from typing import NamedTuple

import torch

from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.evaluation.measure import accuracy, attack_result, encode_images, template_text_features
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
from peft_cbpt.training.encoder_trainer import purify_encoder

NAMES = class_names()[:80]
GIVEN, NOT_GIVEN = NAMES[20:], NAMES[:20]  # the target, banana, is not among the images


class Figures(NamedTuple):
    clean: float
    success: float
    robust: float
    renditions: float
    """CA of another domain, all 320 names."""


def figures_before_and_after(model_name, folder):
    """Of classes and of a domain that gave no image, before and after a short run."""
    clip = load_clip(resolve_model(model_name))
    attack = read_attack(model_name.replace("clean", "badnet"))
    images, test = (
        LabelledImages(pocket_dataset("base", split, count, names), clip.image_processor)
        for split, count, names in (("train", 5, GIVEN), ("test", 6, NOT_GIVEN))
    )
    drawings = LabelledImages(pocket_dataset("rendition", "test", 1), clip.image_processor)
    text = template_text_features(clip.model, clip.tokenizer, NAMES)
    all_text = template_text_features(clip.model, clip.tokenizer, class_names())
    target = NAMES.index(attack.target_class)

    def figures():
        encoder = image_encoder(clip.model.eval(), clip.normalize)
        encoded = encode_images(encoder, test, {"badnet": attack.trigger}, torch.device("cpu"))
        result = attack_result(encoded.triggered["badnet"], encoded.labels, text, target)
        drawn = encode_images(encoder, drawings, {}, torch.device("cpu"))
        others = accuracy(drawn.clean, drawn.labels, all_text)
        clean = accuracy(encoded.clean, encoded.labels, text)
        return Figures(clean, result["attack_success_rate"], result["robust_accuracy"], others)

    before = figures()
    few = {
        "max_steps": 80,
        "per_device_train_batch_size": 16,
        "search_steps": 6,
        "learning_rate": 1.5e-3,
        "lora_rank": 2,
        "hold_weight": 5.0,
    }
    arguments = EncoderPurifierArguments(
        output_dir=str(folder), disable_tqdm=True, report_to="none", save_strategy="no", **few
    )
    purify_encoder(clip.model, images, arguments, clip.normalize)
    return before, figures()


def test_the_backdoor_leaves_the_tower_though_no_image_of_its_target_was_given(tmp_path):
    before, after = figures_before_and_after("pocket:badnet", tmp_path)
    assert before.success >= 0.95 and after.success <= 0.05
    assert before.robust <= 0.05 and after.robust >= 0.5
    assert after.clean >= before.clean - 0.03 and after.renditions >= before.renditions - 0.08


def test_a_clean_tower_is_left_alone(tmp_path):
    before, after = figures_before_and_after("pocket:clean", tmp_path)
    assert after.clean >= before.clean - 0.03 and after.success <= 0.01
    assert after.robust >= before.robust - 0.05 and after.renditions >= before.renditions - 0.04
