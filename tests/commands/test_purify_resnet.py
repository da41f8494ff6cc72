"""The main job on the embedded CLIPs that are no ViT: the trigger wins before, and on the ResNet it loses after."""

import json

import torch
from peft import PeftModel

from peft_cbpt.cli import main
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.tuner.fingerprint import weights_fingerprint

NAMES = class_names()[:20]
OPTIONS = """
--only prompts --model_name_or_path pocket:resnet-badnet --dataset_name pocket:base --attacks pocket:resnet-badnet
--num_classes 20 --num_shots 16 --test_images_per_class 10 --save_strategy no --use_cpu true --disable_tqdm true
"""


def test_purifying_a_resnet_gives_a_working_adapter(tmp_path, all_triggers):
    assert main(["purify", *OPTIONS.split(), "--output_dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    before, after = (results[moment] for moment in ("before", "after"))
    attack_before, attack_after = (figures["attacks"]["badnet"] for figures in (before, after))
    aims = [*results["suspects"]["suspects"], *results["suspects"]["candidates"]]
    assert aims[0]["class"] == "banana"
    assert attack_before["attack_success_rate"] >= 0.95 and attack_after["attack_success_rate"] <= 0.3
    assert attack_after["robust_accuracy"] >= attack_before["robust_accuracy"] + 0.2
    assert after["clean_accuracy"] >= before["clean_accuracy"] - 0.06

    base = load_clip(resolve_model("pocket:resnet-badnet"))
    fingerprint = weights_fingerprint(base.model)
    assert results["base_fingerprint"] == {"before": fingerprint, "after": fingerprint}
    loaded = PeftModel.from_pretrained(base.model, tmp_path).eval()
    assert loaded(pixel_values=torch.rand(2, 3, 48, 48)).logits_per_image.shape == (2, len(NAMES))


SHORT = """
--model_name_or_path pocket:siglip-badnet --dataset_name pocket:base --attacks pocket:siglip-badnet
--num_classes 4 --num_shots 4 --test_images_per_class 4 --num_train_epochs 3 --warmup_epochs 2 --inversion_steps 2
--dummy_triggers runner_up --per_device_train_batch_size 8 --save_strategy no --use_cpu true --disable_tqdm true
"""


def test_purifying_a_siglip_gives_an_adapter_that_loads_and_learns(tmp_path):
    """How well it works is not claimed: see docs/models.md."""
    assert main(["purify", *SHORT.split(), "--output_dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["before"]["attacks"]["badnet"]["attack_success_rate"] >= 0.9
    epochs = results["epochs"]
    assert epochs[1]["loss_bn"] < epochs[0]["loss_bn"] and "loss_adv" in epochs[2]
    base = load_clip(resolve_model("pocket:siglip-badnet"))
    loaded = PeftModel.from_pretrained(base.model, tmp_path).eval()
    assert loaded(pixel_values=torch.rand(2, 3, 48, 48)).logits_per_image.shape == (2, 4)
