"""The claim both ways: the backdoor wins before and loses after, and a clean CLIP stays as it is."""

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

NAMES = class_names()[:40]
GIVEN, NOT_GIVEN = NAMES[20:], NAMES[:20]  # the target, banana, is not among the images


def figures_before_and_after(model_name, folder):
    """(CA, ASR, true class under the trigger) of classes that gave no image, before and after a short run."""
    clip = load_clip(resolve_model(model_name))
    attack = read_attack("pocket:badnet")
    images, test = (
        LabelledImages(pocket_dataset("base", split, count, names), clip.image_processor)
        for split, count, names in (("train", 10, GIVEN), ("test", 6, NOT_GIVEN))
    )
    text = template_text_features(clip.model, clip.tokenizer, NAMES)
    target = NAMES.index(attack.target_class)

    def figures():
        encoder = image_encoder(clip.model.eval(), clip.normalize)
        encoded = encode_images(encoder, test, {"badnet": attack.trigger}, torch.device("cpu"))
        result = attack_result(encoded.triggered["badnet"], encoded.labels, text, target)
        return accuracy(encoded.clean, encoded.labels, text), result.attack_success_rate, result.robust_accuracy

    before = figures()
    few = {"max_steps": 50, "per_device_train_batch_size": 16, "search_steps": 6, "learning_rate": 2e-3}
    arguments = EncoderPurifierArguments(
        output_dir=str(folder), disable_tqdm=True, report_to="none", save_strategy="no", **few
    )
    purify_encoder(clip.model, images, arguments, clip.normalize)
    return before, figures()


def test_the_backdoor_leaves_the_tower_though_no_image_of_its_target_was_given(tmp_path):
    before, after = figures_before_and_after("pocket:badnet", tmp_path)
    assert before[1] >= 0.95 and after[1] <= 0.03
    assert before[2] <= 0.05 and after[2] >= 0.6
    assert after[0] >= before[0] - 0.05


def test_a_clean_tower_is_left_alone(tmp_path):
    before, after = figures_before_and_after("pocket:clean", tmp_path)
    assert after[0] >= before[0] - 0.03 and after[1] <= 0.01
    assert after[2] >= before[2] - 0.05
