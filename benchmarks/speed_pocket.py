"""The cell of benchmarks/speed.py that runs the pocket purification with both loops."""

import tempfile
import time
from collections import Counter

import torch
from peft import get_peft_model

from benchmarks import straightforward
from benchmarks.speed_timing import BUDGET, EPOCHS, SHOTS, WARMUP, peak_bytes, timed
from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.evaluation.measure import accuracy, attack_result, encode_images
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import CBPTTrainer
from peft_cbpt.training.runner_up import RunnerUpTriggers
from peft_cbpt.tuner import CBPTConfig


def pocket(quick: bool) -> dict:
    """The whole purification of the pocket CLIP by both, on the same batches."""
    num_classes, shots, epochs, warmup = (6, 4, 4, 1) if quick else (60, SHOTS, EPOCHS, WARMUP)
    names = class_names()[:num_classes]
    if "banana" not in names:
        names = [*names[:-1], "banana"]
    clip = load_clip(resolve_model("pocket:badnet"))
    train, test = (
        LabelledImages(pocket_dataset("base", split, n, names), clip.image_processor)
        for split, n in (("train", shots), ("test", 5 if quick else 20))
    )
    torch.manual_seed(0)
    model = get_peft_model(clip.model, CBPTConfig(class_names=names).tokenize(clip.tokenizer))
    context = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    start_context = context.detach().clone()
    batches: list[list[int]] = []
    seconds: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        arguments = CBPTTrainingArguments(
            output_dir=folder,
            feature_cache_dir=f"{folder}/cache",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            num_train_epochs=epochs,
            warmup_epochs=warmup,
            dummy_triggers="runner_up",
        )
        trainer = CBPTTrainer(model, arguments, train, clip.normalize)
        compute_loss = trainer.compute_loss

        def noted(wrapped, inputs, **kwargs):
            batches.append(inputs["rows"].tolist())
            return compute_loss(wrapped, inputs, **kwargs)

        trainer.compute_loss = noted
        begin = time.perf_counter()
        with timed(RunnerUpTriggers, "_invert_missing", seconds), timed(trainer, "encode_classes", seconds):
            trainer.train()
        ours = time.perf_counter() - begin
        epochs_logged = [entry for entry in trainer.state.log_history if "cache_hit_rate" in entry]
        pairs = len(trainer.dummy_triggers.store)
    images = trainer.frozen_images
    labels = images.bank.labels
    per_epoch = len(batches) // epochs
    by_epoch = [batches[first : first + per_epoch] for first in range(0, len(batches), per_epoch)]
    config = model.peft_config["default"]
    plain = load_clip(resolve_model("pocket:badnet")).model.requires_grad_(False)
    learner = straightforward.PromptLearner(
        plain, config.class_token_ids, config.bos_token_id, config.eos_token_id, start_context
    )
    settings = straightforward.Settings(
        epochs=epochs, warmup_epochs=warmup, step_size=BUDGET.lr, epsilon=BUDGET.epsilon, sign=False
    )
    begin = time.perf_counter()
    expected = straightforward.purify(plain, learner, images.load, labels, by_epoch, settings)
    theirs = time.perf_counter() - begin
    attack = read_attack("pocket:badnet")
    encoded = encode_images(
        image_encoder(clip.model, clip.normalize), test, {"badnet": attack.trigger}, torch.device("cpu")
    )

    def figures(text: torch.Tensor) -> dict:
        target = names.index(attack.target_class)
        result = attack_result(encoded.triggered["badnet"], encoded.labels, text, target)
        clean = accuracy(encoded.clean, encoded.labels, text)
        return {"clean_accuracy": clean, "attack_success_rate": result["attack_success_rate"]}

    with torch.no_grad():
        after = {
            "ours": figures(model.encode_class_prompts()),
            "straightforward": figures(straightforward.encode_text(plain, learner)),
        }
    stages = {"inversion": seconds["_invert_missing"], "text tower forward": seconds["encode_classes"]}
    return {
        "classes": num_classes,
        "images": len(labels),
        "epochs": epochs,
        "seconds": {"ours": ours, "straightforward": theirs},
        "times_faster": theirs / ours,
        "seconds_by_stage": stages | {"all else": ours - sum(stages.values())},
        "largest_context_difference": (context.detach() - expected).abs().max().item(),
        "after": after,
        "pairs_per_image": pairs / len(labels),
        "cache_hit_rate": [entry["cache_hit_rate"] for entry in epochs_logged],
        "peak_bytes_both": peak_bytes(),
    }
