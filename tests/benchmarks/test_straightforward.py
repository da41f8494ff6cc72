"""The fast loop gives the adapter of the straightforward one."""

import pytest
import torch

from benchmarks.straightforward import PromptLearner, Settings, purify
from tests.training.test_cbpt_trainer import make_trainer


@pytest.mark.parametrize("sign", [True, False], ids=["linf, sign", "l2, raw"])
def test_the_adapter_is_that_of_the_straightforward_loop(poisoned_clip, few_shots, tmp_path, sign):
    """Largest difference of the context at most 1e-4 after all epochs, on the same batches."""
    budget = {} if sign else {"norm": 2, "inversion_step_rule": "raw", "inversion_lr": 2.0, "epsilon": 0.5}
    trainer = make_trainer(poisoned_clip, few_shots, tmp_path, num_train_epochs=6, warmup_epochs=2, **budget)
    (context,) = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    start, batches, compute_loss = context.detach().clone(), [], trainer.compute_loss

    def noted(model, inputs, **kwargs):
        batches.append(inputs["rows"].tolist())
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = noted
    trainer.train()
    per_epoch = len(batches) // 6
    config = trainer.model.peft_config["default"]
    clip = poisoned_clip.model
    learner = PromptLearner(clip, config.class_token_ids, config.bos_token_id, config.eos_token_id, start)
    settings = Settings(epochs=6, warmup_epochs=2, steps=3)
    if not sign:
        settings = Settings(epochs=6, warmup_epochs=2, steps=3, step_size=2.0, epsilon=0.5, sign=False)
    images = trainer.frozen_images
    labels = images.bank.labels
    epochs = [batches[first : first + per_epoch] for first in range(0, len(batches), per_epoch)]
    expected = purify(clip, learner, images.load, labels, epochs, settings)
    assert (expected - start).abs().max() > 1e-3
    torch.testing.assert_close(context.detach(), expected, rtol=0, atol=1e-4)
