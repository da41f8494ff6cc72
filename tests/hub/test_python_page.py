"""docs/python.md from its first snippet to its last, in one namespace, with the Hub of the tests."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from peft_cbpt.hub.adapter_folder import TRIGGERS_FILE
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from tests.conftest import FEW_CLASSES
from tests.hub.conftest import BASE_ID, ROOT

SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), flags=re.S)
CLASSIFY = "print(antidote(pixel_values=torch.ones(1, 3, 48, 48)).logits_per_image[0].tolist())"


def test_every_snippet_runs(hub, fresh, all_triggers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hub.upload(BASE_ID, Path(resolve_model("pocket:badnet")))
    pocket_dataset("base", "train", 8, FEW_CLASSES).remove_columns("sample_id").to_parquet("clean.parquet")
    names: dict = {}
    printed = []
    for number, snippet in enumerate(SNIPPETS):
        if "antidote = " in snippet:  # what a stranger runs
            loaded = fresh("-c", f"import torch, peft_cbpt\n{snippet}\n{CLASSIFY}")
            continue
        few = snippet.replace(
            "num_shots=4,", "num_shots=4, encoder_steps=2, encoder_batch_size=8, encoder_kinds=['wave'],"
        )
        exec(compile(few, f"docs/python.md, snippet {number}", "exec"), names)
        printed.append(capsys.readouterr().out)
    purified, results = names["purified"], names["purified"].results
    aims = [*results["suspects"]["suspects"], *results["suspects"]["candidates"]]
    assert aims[0]["class"] == "banana"
    assert len(results["shots"]) == 4 * len(FEW_CLASSES) and results["n_test_images"] == 4 * len(FEW_CLASSES)
    assert results["settings"]["dataset_name"] == "(given in Python)" and results["model"] == "pocket:badnet"
    files = ("adapter_model.safetensors", "results.json", TRIGGERS_FILE)
    assert all((Path("adapter") / name).is_file() for name in files)
    before, after = (list(map(float, line.split())) for line in printed[3].splitlines()[-2:])
    assert before[1] > 0.9 and after[1] < 0.5 * before[1] and after[2] > before[2], printed[3]
    with torch.no_grad():
        logits = purified.model(pixel_values=torch.ones(1, 3, 48, 48)).logits_per_image
    expected = torch.tensor(json.loads(loaded))  # in half precision, as the base's weights are stored
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=0.05)
    assert purified.clip.model.name_or_path.endswith("clip-badnet"), "the model lost its name"
    assert not list(tmp_path.glob("trainer_output/*")), "something was written that nobody asked for"


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"num_shot": 1}, "unknown setting 'num_shot'"),
        ({"num_shots": 8}, "give test_images, or fewer shots"),
        ({"images": 3}, "images must be a name"),
        ({"model": torch.nn.Linear(1, 1)}, "model must be a name"),
        ({"class_names": ["banana", "unicycle"]}, "'unicycle'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change, cure, tmp_path):
    from peft_cbpt import purify
    from peft_cbpt.common.errors import InputError

    images = pocket_dataset("base", "train", 8, FEW_CLASSES)
    given = {"model": "pocket:badnet", "images": images, "output_dir": tmp_path / "out"} | change
    with pytest.raises(InputError, match=re.escape(cure)):
        purify(**given)
    assert not list((tmp_path / "out").glob("*"))


def test_a_loaded_clip_is_purified_without_a_trace(poisoned_clip, tmp_path, monkeypatch):
    """A CLIPModel and a Dataset, nothing on disk, template prompts before; then measured by itself."""
    import peft_cbpt

    monkeypatch.chdir(tmp_path)
    base = Path(shutil.copytree(resolve_model("pocket:badnet"), tmp_path / "base"))
    clip = type(poisoned_clip.model).from_pretrained(base, dtype=torch.float32)
    images = pocket_dataset("base", "train", 4, FEW_CLASSES)
    settings = {"num_train_epochs": 1, "warmup_epochs": 1, "dummy_triggers": "runner_up", "disable_tqdm": True}
    training = peft_cbpt.CBPTTrainingArguments(**settings)
    with pytest.raises(ValueError, match="training shots themselves"):
        peft_cbpt.purify(clip, images, images, num_shots=2, training=training)
    purified = peft_cbpt.purify(clip, images, attacks=["pocket:badnet"], num_shots=2, training=training)
    assert purified.output_dir is None and {file.name for file in tmp_path.iterdir()} == {"base"}
    assert purified.model.get_base_model() is clip and str(tmp_path) not in str(purified.results)
    measured = [peft_cbpt.evaluate(one, images, classifiers=["template"]) for one in (str(base), purified.model)]
    (one,), (two,) = (each["cells"] for each in measured)
    assert one["accuracy"] == two["accuracy"], "an adapter changes the template's answers"
