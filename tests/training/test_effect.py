"""The claim both ways on the shipped backdoored CLIP: the trigger wins before and loses after."""

import pytest
import torch
from peft import get_peft_model

from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.detection import verdict
from peft_cbpt.evaluation.measure import accuracy, attack_result, encode_images
from peft_cbpt.method.targets import runner_up
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.training import runner_up as published
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import CBPTTrainer
from peft_cbpt.tuner import CBPTConfig
from tests.conftest import FEW_CLASSES

pytestmark = pytest.mark.usefixtures("all_triggers")
NAMES = class_names()[:20]


def purified_figures(clip, folder, names=NAMES, shots=8, **settings):
    """(CA, ASR) before and after a short purification, of 20 classes with 8 shots if not said otherwise."""
    torch.manual_seed(0)
    attack = read_attack("pocket:badnet")
    target = names.index(attack.target_class)
    train, test = (
        LabelledImages(pocket_dataset("base", split, n, names), clip.image_processor)
        for split, n in (("train", shots), ("test", 10))
    )
    published = settings.get("dummy_triggers") == "runner_up"
    start = "normal" if published or settings.get("outer_solver") == "prompts" else "template"
    model = get_peft_model(clip.model, CBPTConfig(class_names=names, context_init=start).tokenize(clip.tokenizer))
    encoder = image_encoder(clip.model, clip.normalize)
    encoded = encode_images(encoder, test, {"badnet": attack.trigger}, torch.device("cpu"))

    def figures():
        model.eval()
        with torch.no_grad():
            text = model.encode_class_prompts()
        success = attack_result(encoded.triggered["badnet"], encoded.labels, text, target)["attack_success_rate"]
        return accuracy(encoded.clean, encoded.labels, text), success

    with model.disable_adapter():
        before = figures()
    short = {"num_train_epochs": 25, "warmup_epochs": 2, "per_device_train_batch_size": 16} if published else {}
    arguments = CBPTTrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, save_strategy="no", **short | settings
    )
    CBPTTrainer(model, arguments, train, clip.normalize).train()
    return before, figures()


RUNNER_UP = {
    "dummy_triggers": "runner_up",
    "norm": 2,
    "epsilon": 1.5,
    "inversion_step_rule": "normalized",
    "inversion_lr": 0.3,
}


def test_the_default_finds_the_target_and_purifies(poisoned_clip, tmp_path, all_searches):
    (clean_before, success_before), (clean_after, success_after) = purified_figures(poisoned_clip, tmp_path)
    assert success_before >= 0.95 and success_after <= 0.03
    assert clean_after >= clean_before - 0.03


def test_a_target_that_is_not_found_is_a_candidate_and_is_purified(poisoned_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(verdict, "FALSE_ALARMS", 0.0)
    (clean_before, success_before), (clean_after, success_after) = purified_figures(poisoned_clip, tmp_path)
    assert success_before >= 0.95 and success_after <= 0.03
    assert clean_after >= clean_before - 0.03


def test_one_shot_of_a_few_classes_is_enough(poisoned_clip, tmp_path):
    (clean_before, success_before), (clean_after, success_after) = purified_figures(
        poisoned_clip, tmp_path, FEW_CLASSES, shots=1
    )
    assert success_before >= 0.95 and success_after <= 0.1 and clean_after >= clean_before - 0.05


@pytest.fixture
def known_target(monkeypatch):
    """y' is the attacker's target for every image of another class."""
    target = NAMES.index("banana")

    def known(logits, labels):
        return torch.where(labels == target, runner_up(logits, labels), target)

    monkeypatch.setattr(published, "runner_up", known)


def test_triggers_inverted_towards_the_target_purify(poisoned_clip, tmp_path, known_target):
    (clean_before, success_before), (clean_after, success_after) = purified_figures(
        poisoned_clip, tmp_path, **RUNNER_UP
    )
    assert success_before >= 0.95 and success_after <= 0.1
    assert clean_after >= clean_before - 0.06


def test_clean_images_alone_do_not_purify(poisoned_clip, tmp_path):
    """Without the inner loop the same schedule leaves the backdoor: the inverted triggers do the work."""
    before, after = purified_figures(poisoned_clip, tmp_path, lambda_adv=0, lambda_align=0, alpha=0, **RUNNER_UP)
    assert after[1] >= 0.9 and before[1] >= 0.95
