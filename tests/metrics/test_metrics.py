from pathlib import Path

import evaluate
import pytest
from huggingface_hub import SpaceCardData, metadata_load

import peft_cbpt.metrics
from peft_cbpt.metrics import AttackSuccessRate, CleanAccuracy
from tests.fresh import run_in_two_processes

FOLDER = Path(peft_cbpt.metrics.__file__).parent
NAMES = ["clean_accuracy", "attack_success_rate"]
RANKED = [[0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 1, 3, 4, 5]]
LABELS = [0, 0, 0, 2]

IN_TWO_PROCESSES = """
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from peft_cbpt.metrics import CleanAccuracy

accelerator = Accelerator(cpu=True)
labels = torch.arange(21) % 3
loader = accelerator.prepare(DataLoader(TensorDataset(labels, torch.arange(21) % 2), batch_size=4))
metric = CleanAccuracy(keep_in_memory=True)
for batch in loader:
    labels, predictions = accelerator.gather_for_metrics(batch)
    if accelerator.is_main_process:
        metric.add_batch(predictions=predictions, references=labels)
if accelerator.is_main_process:
    print("RESULT", metric.compute())
accelerator.end_training()
"""


def test_accuracy_of_rankings_and_of_single_answers():
    result = CleanAccuracy(keep_in_memory=True).compute(predictions=RANKED, references=LABELS)
    assert result == {"accuracy": 0.5, "top5_accuracy": 0.75, "per_class": {"0": pytest.approx(1 / 3), "2": 1.0},
                      "n_images": 4}  # fmt: skip
    single = CleanAccuracy(keep_in_memory=True).compute(predictions=[row[0] for row in RANKED], references=LABELS)
    assert single == {key: value for key, value in result.items() if key != "top5_accuracy"}


def test_attack_success_in_both_conventions():
    metric = AttackSuccessRate(keep_in_memory=True)
    result = metric.compute(predictions=[0, 0, 0, 1, 0, 1], references=[0, 0, 1, 1, 2, 2], target=0)
    assert result == {
        "attack_success_rate": 0.5,
        "attack_success_rate_published": pytest.approx(4 / 6),
        "robust_accuracy": 0.25,
        "per_class": {"0": 1.0, "1": 0.5, "2": 0.5},
        "n_images": 6,
    }
    with pytest.raises(ValueError, match="all images are of the target class 1"):
        AttackSuccessRate(keep_in_memory=True).compute(predictions=[0], references=[1], target=1)


def test_every_image_may_have_a_target_of_its_own():
    metric = AttackSuccessRate(keep_in_memory=True)
    result = metric.compute(predictions=[1, 0, 2, 2, 0, 2], references=[0, 0, 1, 1, 2, 2], target=[1, 1, 2, 2, 0, 0])
    assert result["attack_success_rate"] == result["attack_success_rate_published"] == pytest.approx(4 / 6)
    assert result["robust_accuracy"] == pytest.approx(2 / 6)
    assert result["per_class"] == {"0": 0.5, "1": 1.0, "2": 0.5}


def test_batches_add_up():
    metric = CleanAccuracy(keep_in_memory=True)
    for row, label in zip(RANKED, LABELS, strict=True):
        metric.add_batch(predictions=[row], references=[label])
    assert metric.compute() == CleanAccuracy(keep_in_memory=True).compute(predictions=RANKED, references=LABELS)


@pytest.mark.parametrize("name, settings", [("clean_accuracy", {}), ("attack_success_rate", {"target": 0})])
def test_a_folder_loads_with_evaluate_offline(name, settings):
    loaded = evaluate.load(str(FOLDER / name), keep_in_memory=True)
    own = {"clean_accuracy": CleanAccuracy, "attack_success_rate": AttackSuccessRate}[name]
    given = {"predictions": RANKED, "references": LABELS, **settings}
    assert loaded.compute(**given) == own(keep_in_memory=True).compute(**given)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_a_space(name):
    """What the Hub asks of a Space, and `evaluate` of a metric's page; gradio itself is not run here."""
    header = metadata_load(FOLDER / name / "README.md")
    card = SpaceCardData(**header)
    assert card.sdk == "gradio" and {"evaluate", "metric"} <= set(card.tags)
    app = (FOLDER / name / card.app_file).read_text()
    compile(app, card.app_file, "exec")
    assert f'"{name}.py"' in app
    script = (FOLDER / name / f"{name}.py").read_text()
    assert "peft_cbpt" not in script, "a Space has no peft_cbpt"
    imported = {line.split()[1] for line in script.splitlines() if line.startswith(("import ", "from "))}
    required = {line.split(">=")[0] for line in (FOLDER / name / "requirements.txt").read_text().split()}
    assert imported <= required


def test_two_processes_count_every_sample_once(tmp_path):
    (tmp_path / "script.py").write_text(IN_TWO_PROCESSES)
    printed = run_in_two_processes(str(tmp_path / "script.py"))
    (line,) = [line for line in printed.splitlines() if line.startswith("RESULT")]
    alone = CleanAccuracy(keep_in_memory=True)
    alone.add_batch(predictions=[i % 2 for i in range(21)], references=[i % 3 for i in range(21)])
    assert line == f"RESULT {alone.compute()}"
