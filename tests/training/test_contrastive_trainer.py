from functools import partial

import torch
import torch.nn.functional as F
from transformers import TrainingArguments

from peft_cbpt.clip.pixels import PixelNormalizer
from peft_cbpt.pocket.dataset import PocketPairs
from peft_cbpt.training.contrastive_trainer import (
    ContrastiveCollator,
    ContrastiveTrainer,
    contrastive_loss,
    sigmoid_loss,
)
from peft_cbpt.tuner.families import caption_ids
from recipes.pretrain_pocket import build_model, build_tokenizer


def test_with_distinct_captions_the_loss_is_equation_3():
    image, text = (F.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
    exponentials = (10 * image @ text.T).exp()
    rows = (exponentials.diag() / exponentials.sum(1)).log()
    columns = (exponentials.diag() / exponentials.sum(0)).log()
    expected = -(rows.sum() + columns.sum()) / (2 * 4)
    torch.testing.assert_close(contrastive_loss(image, text, torch.tensor(10.0), torch.eye(4).bool()), expected)


def test_pairs_with_one_caption_are_no_negatives_of_each_other():
    image = F.normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1]]), dim=1)
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    apart = contrastive_loss(image, image, torch.tensor(50.0), torch.eye(3).bool())
    together = contrastive_loss(image, image, torch.tensor(50.0), same)
    torch.testing.assert_close(together, apart)  # both are log 2 for the twins; but only one can go on falling
    scale = torch.tensor(50.0, requires_grad=True)
    images = image.clone().requires_grad_(True)
    contrastive_loss(images, image, scale, same).backward()
    assert images.grad.abs().max() < 1e-6


def test_a_few_steps_lower_the_loss(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        logging_steps=4,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = ContrastiveTrainer(
        model,
        arguments,
        train_dataset=PocketPairs(32),
        data_collator=ContrastiveCollator(partial(caption_ids, model, tokenizer), PixelNormalizer()),
        keep_order=True,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_the_loss_of_siglip_asks_every_pair_by_itself():
    image, text = (F.normalize(torch.randn(3, 8), dim=1) for _ in range(2))
    scale, bias, same = torch.tensor(10.0), torch.tensor(-2.0), torch.eye(3).bool()
    expected = 0.0
    for i in range(3):
        for j in range(3):
            belongs = torch.sigmoid(scale * image[i] @ text[j] + bias)
            expected -= (belongs if i == j else 1 - belongs).log() / 3
    torch.testing.assert_close(sigmoid_loss(image, text, scale, bias, same), expected)
