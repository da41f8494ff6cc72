import copy
import math
import shutil
from functools import cached_property

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import TrainingArguments

from peft_cbpt.common.errors import InputError
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import CBPTTrainer
from peft_cbpt.training.forward_redirection import call_through
from peft_cbpt.tuner import CBPTConfig
from peft_cbpt.tuner.fingerprint import weights_fingerprint
from tests.conftest import FEW_CLASSES

LINF = {"dummy_triggers": "runner_up", "norm": math.inf, "inversion_step_rule": "sign", "inversion_lr": 2 / 255}
LINF["inversion_steps"] = 3
UNIVERSAL = {"dummy_triggers": "universal"}
PROMPTS = {**UNIVERSAL, "outer_solver": "prompts"}
LOOP = {"warmup_epochs": 1, "per_device_train_batch_size": 7}
NO_CACHE = {"use_feature_cache": False, "feature_cache_dir": None}


def make_trainer(clip, images, folder, adapter_name="default", **settings):
    torch.manual_seed(0)
    config = CBPTConfig(class_names=FEW_CLASSES).tokenize(clip.tokenizer)
    model = get_peft_model(copy.deepcopy(clip.model), config, adapter_name)
    defaults = {
        "feature_cache_dir": str(folder / "cache"),
        "num_train_epochs": 3,
    }
    loop = {} if settings.get("dummy_triggers") == "universal" and "outer_solver" not in settings else LOOP
    settings = {**defaults, **loop, **(LINF if settings.get("dummy_triggers") != "universal" else {}), **settings}
    arguments = CBPTTrainingArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **settings)
    return CBPTTrainer(model, arguments, images, clip.normalize)


def trained_context(clip, images, folder, resume=None, **settings):
    trainer = make_trainer(clip, images, folder, **settings)
    trainer.train(resume_from_checkpoint=resume)
    (context,) = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    return context.detach().clone(), trainer


@pytest.fixture
def reference(poisoned_clip, few_shots, tmp_path):
    return trained_context(poisoned_clip, few_shots, tmp_path / "reference")


def test_only_the_context_learns_and_the_base_stays_bit_identical(poisoned_clip, few_shots, tmp_path):
    trainer = make_trainer(poisoned_clip, few_shots, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == 1 and "cbpt_context" in changed.pop()
    assert weights_fingerprint(trainer.model.get_base_model()) == weights_fingerprint(poisoned_clip.model)
    assert all(p.grad is None for p in trainer.model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    "settings",
    [{"inversion_batch_size": 1}, {"inversion_batch_size": 7}, {"activation_memory_gb": 1e-4}],
    ids=str,
)
def test_batch_size_and_memory_change_nothing(reference, poisoned_clip, few_shots, tmp_path, settings):
    context, trainer = trained_context(poisoned_clip, few_shots, tmp_path / "other", **settings)
    torch.testing.assert_close(context, reference[0], rtol=0, atol=1e-5)
    kept, other = reference[1].dummy_triggers.store, trainer.dummy_triggers.store
    both = torch.tensor(sorted(set(other.keys()) & set(kept.keys())))
    assert len(both) >= len(few_shots)
    torch.testing.assert_close(other.look_up(both), kept.look_up(both), rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_adapter_and_another_another(reference, poisoned_clip, few_shots, tmp_path):
    again, _ = trained_context(poisoned_clip, few_shots, tmp_path / "again")
    assert torch.equal(again, reference[0])
    other, _ = trained_context(poisoned_clip, few_shots, tmp_path / "other", seed=1)
    assert not torch.allclose(other, reference[0], atol=1e-5)


@pytest.mark.parametrize("settings", [UNIVERSAL, PROMPTS], ids=["features", "prompts"])
def test_a_resumed_run_with_universal_triggers_equals_an_uninterrupted_one(
    poisoned_clip, few_shots, tmp_path, settings
):
    whole, _ = trained_context(poisoned_clip, few_shots, tmp_path / "whole", save_total_limit=None, **settings)
    first = min((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    resumed, _ = trained_context(
        poisoned_clip,
        few_shots,
        tmp_path / "again",
        resume=str(first),
        **settings,
        **NO_CACHE,
    )
    assert torch.equal(resumed, whole)
    for other in ({}, {**settings, "perturbed_share": 0.1}):
        with pytest.raises(InputError, match="another model"):
            make_trainer(poisoned_clip, few_shots, tmp_path / "other", **other).check_checkpoint(str(first))


def test_a_resumed_run_equals_an_uninterrupted_one(reference, poisoned_clip, few_shots, tmp_path):
    _, trainer = trained_context(poisoned_clip, few_shots, tmp_path / "resumed", save_total_limit=None)
    checkpoints = sorted((tmp_path / "resumed").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) == 3 and not (tmp_path / "resumed" / ".incomplete").exists()
    for checkpoint in checkpoints[1:]:
        shutil.rmtree(checkpoint)
    resumed, again = trained_context(
        poisoned_clip, few_shots, tmp_path / "resumed", resume=str(checkpoints[0]), save_total_limit=None
    )
    assert torch.equal(resumed, reference[0])
    assert [e["epoch"] for e in again.state.log_history if "loss_bn" in e] == [1, 2, 3]


def test_an_adapter_of_another_name_is_resumed(poisoned_clip, few_shots, tmp_path):
    whole, _ = trained_context(poisoned_clip, few_shots, tmp_path, adapter_name="x", save_total_limit=None)
    first = min(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    resumed, _ = trained_context(poisoned_clip, few_shots, tmp_path / "b", resume=str(first), adapter_name="x")
    assert torch.equal(resumed, whole)


def test_a_cache_knows_what_the_tower_makes_of_its_weights(poisoned_clip, few_shots, tmp_path):
    one = make_trainer(poisoned_clip, few_shots, tmp_path)
    again = make_trainer(poisoned_clip, few_shots, tmp_path)
    other = make_trainer(poisoned_clip, few_shots, tmp_path)
    half = make_trainer(poisoned_clip, few_shots, tmp_path)
    other.model.get_base_model().config.vision_config.hidden_act = "gelu_new"
    half.model.get_base_model().half()
    assert one._bank_key == again._bank_key and one._bank_key != other._bank_key != half._bank_key != one._bank_key


def test_many_gpus_without_a_launcher_are_one(tmp_path, monkeypatch):
    def set_up_devices(arguments):
        arguments._n_gpu = 4
        return torch.device("cuda")

    four = cached_property(set_up_devices)
    four.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", four)
    assert TrainingArguments(output_dir=str(tmp_path)).n_gpu == 4
    assert CBPTTrainingArguments(output_dir=str(tmp_path)).n_gpu == 1


def test_a_checkpoint_in_the_making_is_not_taken_for_one(poisoned_clip, few_shots, tmp_path, monkeypatch):
    trainer = make_trainer(poisoned_clip, few_shots, tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_rng_state", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_every_epoch_is_logged(reference):
    trainer = reference[1]
    epochs = [entry for entry in trainer.state.log_history if "loss_bn" in entry]
    assert len(epochs) == 3 and "loss_adv" not in epochs[0]
    for entry in epochs[1:]:
        assert {"loss_adv", "loss_align", "inversion_success", "cache_hit_rate", "clean_accuracy"} <= entry.keys()
        assert sum(entry["pseudo_targets"].values()) == len(trainer.images)
        assert set(entry["pseudo_targets"]) <= set(FEW_CLASSES)
    assert epochs[1]["cache_hit_rate"] <= 0.1 < 0.5 <= epochs[2]["cache_hit_rate"]
    assert epochs[1]["inversions"] >= len(trainer.images) > epochs[2]["inversions"]


def test_the_learning_rate_is_a_cosine_over_epochs(reference):
    rates = [entry["learning_rate"] for entry in reference[1].state.log_history if "loss_bn" in entry]
    expected = [2e-3 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in (0, 1, 2)]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_evaluation_reports_the_loss_of_the_adapter(reference, few_shots):
    metrics = reference[1].evaluate(few_shots)
    assert 0 < metrics["eval_loss"] < math.log(len(FEW_CLASSES))


@pytest.mark.parametrize("norm, epsilon", [(0, 20), (1, 10), (2, 1.0)])
@pytest.mark.parametrize("positives", ["closest", "random"])
def test_every_norm_and_positive_rule_trains(poisoned_clip, few_shots, tmp_path, norm, epsilon, positives):
    settings = {"norm": norm, "epsilon": epsilon, "positives": positives, "num_train_epochs": 2}
    context, _ = trained_context(
        poisoned_clip, few_shots, tmp_path, inversion_step_rule="normalized", inversion_lr=0.2, **settings
    )
    assert torch.isfinite(context).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"lambda_adv": -1},
        {"epsilon": -0.1, "dummy_triggers": "runner_up"},
        {"positives": "best", "dummy_triggers": "runner_up"},
        {"num_train_epochs": 0},
        {"norm": 5, "dummy_triggers": "runner_up"},
        {"dummy_triggers": "banana"},
        {"outer_solver": "words"},
        {"outer_solver": "features", "dummy_triggers": "runner_up"},
        {"warmup_epochs": 20, "num_train_epochs": float("nan")},
    ],
)
def test_bad_settings_are_refused(tmp_path, settings):
    with pytest.raises(InputError, match="|".join(settings)):
        CBPTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_the_default_warmup_is_refused_where_it_is_all_there_is(tmp_path):
    for epochs in (1, 5):
        with pytest.raises(InputError, match=f"num_train_epochs {epochs} ends within"):
            CBPTTrainingArguments(output_dir=str(tmp_path), outer_solver="prompts", num_train_epochs=epochs)
    for settings in ({"num_train_epochs": 6}, {"num_train_epochs": 5, "warmup_epochs": 1}):
        CBPTTrainingArguments(output_dir=str(tmp_path), outer_solver="prompts", **settings)
    coop = {"num_train_epochs": 10, "warmup_epochs": 10}
    CBPTTrainingArguments(output_dir=str(tmp_path), outer_solver="prompts", **coop)
    CBPTTrainingArguments(output_dir=str(tmp_path), num_train_epochs=1)


@pytest.mark.parametrize(
    "n_images, settings, batch, said",
    [
        (960, {}, 32, ""),
        (60, {}, 32, ""),
        (24, {}, 12, "24 images in batches of 32 would be 15 steps"),
        (6, {}, 3, "batches are of 3"),
        (
            24,
            {"num_train_epochs": 6},
            1,
            "only 24 steps follow the prompt warm-up, too few to purify: set num_train_ep",
        ),
        (24, {"per_device_train_batch_size": 24}, 24, "set num_train_epochs to 35 or more"),
        (24, {"max_steps": 8}, 32, ""),
        (24, {"gradient_accumulation_steps": 2}, 6, "batches are of 6"),
    ],
)
def test_few_shots_make_small_batches(n_images, settings, batch, said, tmp_path, caplog):
    given = CBPTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, outer_solver="prompts", **settings)
    arguments = given.with_enough_steps(n_images)
    assert arguments.per_device_train_batch_size == batch and said in caplog.text and bool(said) == bool(caplog.text)
    assert arguments is given or given.per_device_train_batch_size == 32


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": 0.1},
        {"norm": 1},
        {"inversion_steps": 3},
        {"positives": "random"},
        {"inversion_dtype": "bf16"},
        {"dummy_triggers": "runner_up", "perturbed_share": 0.1},
        {"dummy_triggers": "runner_up", "universal_share": 0.5},
        {"warmup_epochs": 2},
        {"per_device_train_batch_size": 8},
        {"learning_rate": 0.1},
        {"use_feature_cache": False, "feature_cache_dir": "somewhere"},
        {"optim": "adafactor"},
        {"warmup_steps": 10},
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 5.0},
        {"dataloader_drop_last": True},
        {"gradient_checkpointing": True},
        {"load_best_model_at_end": True},
    ],
    ids=str,
)
def test_settings_without_effect_are_refused_with_the_reason(tmp_path, settings):
    with pytest.raises(InputError, match="has no effect here: .+; leave it out"):
        CBPTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_call_through_runs_the_wrappers_forward():
    class Wrapper(nn.Module):
        calls = 0

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args):
            self.calls += 1
            return self.module(*args)

    inner = nn.Linear(2, 2)
    wrapper = Wrapper(inner)
    assert call_through(wrapper, inner, lambda x: ("called", x), 3) == ("called", 3) and wrapper.calls == 1
    assert call_through(inner, inner, lambda x: x, 4) == 4
    assert inner(torch.zeros(1, 2)).shape == (1, 2)
