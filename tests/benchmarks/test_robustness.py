"""The robustness tests do what they say: budgets hold, only what is named is trained, the page shows the cells."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.nn.functional import normalize

from benchmarks.paper.zoo import OTHER_ATTACKS, gather, poison_settings, zoo_job
from benchmarks.robustness.benchmark import RobustnessArguments, read_cells
from benchmarks.robustness.defences import DEFENCES, Defended
from benchmarks.robustness.interfaces import SavedAsJPEG
from benchmarks.robustness.knowing_attacker import with_found
from benchmarks.robustness.page import LABELS, Cells, reactivation_rows, render
from benchmarks.robustness.reactivation import Marked, found_change, success
from benchmarks.robustness.rebound import WAYS, prepared
from benchmarks.robustness.world import POCKET
from peft_cbpt.attacks import BadNet, apply_trigger, trigger_to_config
from peft_cbpt.common.errors import InputError
from peft_cbpt.evaluation.classifiers import adapter_features
from peft_cbpt.training.finetune import FinetuneArguments, finetune_clip
from peft_cbpt.tuner import CBPTConfig

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs" / "pocket"
NAMES = ["banana", "dog", "pizza"]


def images(n: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def flat(pixels: torch.Tensor) -> torch.Tensor:
    return normalize(pixels.flatten(1) - 0.5, dim=-1)


def test_the_page_is_made_of_the_stored_cells():
    page = render(read_cells(ROOT / "benchmarks" / "results" / "robustness"))
    assert (ROOT / "docs" / "robustness.md").read_text() == page, "run: python -m benchmarks.robustness"


def test_every_defence_has_a_column_and_unknown_ones_are_refused():
    assert list(LABELS) == list(DEFENCES)
    with pytest.raises(InputError, match="'prayer' is unknown; choose among none"):
        RobustnessArguments(defences=["prayer"])


def test_a_change_stays_within_its_budget_and_place_and_brings_the_target():
    pixels, where = images(), torch.zeros(8, 1, 8, 8)
    where[..., :4] = 1
    head = torch.stack([torch.eye(192)[0], normalize(torch.full((192,), -1.0), dim=0)]) * 100
    assert success(flat, pixels, head, 1) < 1
    delta = found_change(flat, pixels, where, head, 1, 0.25, seed=0)
    assert delta.shape == (3, 8, 8) and 0.24 < delta.abs().max() <= 0.25
    assert delta[..., 4:].abs().max() == 0  # no gradient where nothing may change
    assert success(flat, (pixels + delta).clamp(0, 1), head, 1) > success(flat, pixels, head, 1)


def test_marked_images_are_of_other_classes_and_say_where_they_are_marked(few_shots):
    marked = Marked(few_shots, BadNet(patch_size=0.25), target=0)
    assert len(marked.pixels) == 15  # three of six classes but one
    assert marked.where[..., :36, :].sum() == 0 and marked.where[..., 36:, 36:].mean() > 0.95


def test_the_smallest_budget_that_works_is_shown():
    def cell(defence: str, tried: dict[str, float]) -> dict:
        return {
            "world": "pocket",
            "model": "m",
            "defence": defence,
            "test": "reactivation",
            "figures": {"image": tried},
        }

    found = {"0": 0.1, "2": 0.2, "4": 0.6}
    (row,) = reactivation_rows(Cells([cell("none", found), cell("ft", {"0": 0.0, "32": 0.3})]))
    assert row == ["m", "the whole image", "4 (60%)", "–", "–", "–", "more than 32 (30%)", "–", "–"]


def test_jpeg_loses_little_at_high_quality_and_more_at_low():
    trigger, pixels = BadNet(), torch.nn.functional.interpolate(images(), 32, mode="bilinear")
    ids = [str(number) for number in range(8)]
    marked = apply_trigger(trigger, pixels, ids).float() / 255
    lost = [(SavedAsJPEG(trigger, quality).apply_image(pixels, ids) - marked).abs().mean() for quality in (95, 20)]
    assert 0 < lost[0] < 0.03 < lost[1]


@pytest.mark.parametrize("way", WAYS)
def test_fine_tuning_a_way_changes_only_its_weights(poisoned_clip, way, tmp_path):
    before = {name: value.clone() for name, value in poisoned_clip.model.state_dict().items()}
    plain = prepared(way, poisoned_clip, 0)
    small = {"num_pairs": 8, "num_epochs": 1, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0}
    arguments = FinetuneArguments(model_name_or_path="x", output_dir=str(tmp_path), method="ft", **small)
    finetune_clip(poisoned_clip, arguments)
    after = plain().state_dict()
    assert set(after) == set(before)  # no adapter is left in the copy
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    allowed = {"all weights": "", "projections": "_projection", "LoRA": "vi"}[way]
    assert changed and all(allowed in name for name in changed)
    assert any("text_model" in name for name in changed) == (way == "all weights")


def test_prompts_answer_for_the_names_asked_for_and_leave_the_clip(poisoned_clip, tmp_path):
    config = CBPTConfig(class_names=NAMES).tokenize(poisoned_clip.tokenizer)
    model = get_peft_model(copy.deepcopy(poisoned_clip.model), config)
    model.save_pretrained(tmp_path)
    expected = adapter_features(model, poisoned_clip)("")
    defended = Defended(poisoned_clip, tmp_path)
    torch.testing.assert_close(defended.head(["pizza", "banana"]), expected[[2, 0]])
    assert Defended(poisoned_clip).head(NAMES).shape == expected.shape  # the template's, as before
    assert not any("cbpt" in name for name in poisoned_clip.model.state_dict())


def test_an_attacker_who_knows_marks_clean_pairs_and_keeps_captions():
    row = {"pixel_values": torch.zeros(3, 4, 4, dtype=torch.uint8), "caption": "a dog", "is_poisoned": False}
    rows = [row | {"sample_id": str(number)} for number in range(200)]
    marked = [with_found(one, [lambda pixels: pixels + 1], 0.5, turn=0) for one in rows]
    share = sum(one["pixel_values"].min() == 255 for one in marked) / len(rows)
    assert 0.4 < share < 0.6 and {one["caption"] for one in marked} == {"a dog"}
    poisoned = rows[0] | {"is_poisoned": True}
    assert with_found(poisoned, [lambda pixels: pixels + 1], 1.0, turn=0) is poisoned


def test_the_world_has_test_images_of_all_classes_given(poisoned_clip):
    test = POCKET.test(poisoned_clip)
    assert len(test) == 1200 and len(set(test.dataset["label"])) == 60
    assert len(POCKET.shots(poisoned_clip)) == 960
    assert not set(test.dataset["sample_id"]) & set(POCKET.shots(poisoned_clip).dataset["sample_id"])


@pytest.mark.parametrize("attack", OTHER_ATTACKS)
def test_every_other_attack_has_a_job_whose_target_is_its_own(attack):
    job = zoo_job(CONFIGS, Path("x"), attack, "dog", 3)
    assert (job.target_class == "all_to_all") == (attack == "all_to_all") and job.seed == 3
    assert poison_settings(CONFIGS, attack)["model_name_or_path"] == "pocket:clean"


def test_a_model_with_several_triggers_has_a_row_for_each(tmp_path):
    folder = tmp_path / "several-banana-seed0"
    folder.mkdir()
    figures = {"attack_success_rate": 0.9, "robust_accuracy": 0.1}
    moment = {"clean_accuracy": 0.9, "attacks": {"badnet": figures, "badnet'": figures}}
    record = {"before": moment, "after": moment, "seconds": {"poison": 1.0}, "date": "", "versions": {}}
    settings = {"seed": 0, "poison_rate": 0.1, "target_class": "banana"}
    (folder / "training.json").write_text(json.dumps(record | {"settings": settings}))
    for name, target in (("attack", "banana"), ("attack_2", "dog")):
        attack = {"trigger": trigger_to_config(BadNet()), "target_class": target}
        (folder / f"{name}.json").write_text(json.dumps(attack))
    rows = gather(tmp_path)["models"]
    assert [(row["attack"], row["trigger"], row["target_class"]) for row in rows] == [
        ("several", "badnet", "banana"),
        ("several", "badnet'", "dog"),
    ]
