"""What a purification leaves: results, adapter, picture and card."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import Tensor

from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.common.files import removed_afterwards, write_json
from peft_cbpt.common.records import made_now, peak_memory_bytes
from peft_cbpt.data.shots import ShotsAndTest
from peft_cbpt.detection.found import save_triggers
from peft_cbpt.evaluation.measure import EncodedImages
from peft_cbpt.hub.adapter_folder import RESULTS_FILE, SCHEMA_VERSION, TRIGGERS_FILE
from peft_cbpt.hub.card import write_card
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import STAGING_FOLDER, CBPTTrainer
from peft_cbpt.training.dummy_triggers import suspects_of


@dataclass(frozen=True)
class Made:
    """What was made and measured.

    Args:
        model: The CLIP with its adapter.
        images: The test images as the undefended encoder sees them.
        repaired: As the purified one sees them; the same object where only prompts were made.
        undefended: From a text trigger to features (n_classes, D) of the template prompts.
        purified: The same of the learned prompts, or of the template where only the encoder was purified.
        before: Figures of the undefended classifier.
        encoder: Of the template prompts on the repaired encoder, if there is one.
        after: Of all that was made.
        trainer: Of the prompts, if they were tuned.
        prompts: Whether tuned prompts were kept on a repaired encoder, and why; see docs/results-schema.md.
    """

    model: PeftModel
    images: EncodedImages
    repaired: EncodedImages
    undefended: Callable[[str], Tensor]
    purified: Callable[[str], Tensor]
    before: dict[str, Any]
    encoder: dict[str, Any] | None
    after: dict[str, Any]
    trainer: CBPTTrainer | None
    prompts: dict[str, Any] | None = None


def record(
    data: ShotsAndTest,
    attacks: Mapping[str, Attack],
    made: Made,
    training: CBPTTrainingArguments,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """What results.json says of what was made; for the rest see docs/results-schema.md."""
    trainer = made.trainer
    used = {} if trainer is None else trainer.args.used()
    settings = {name: str(value) if value == math.inf else value for name, value in used.items()}
    if trainer is not None:
        prompts: Any = trainer.model.active_peft_config  # type: ignore[union-attr]
        settings |= {name: getattr(prompts, name) for name in ("num_context_tokens", "context_init")}
    history = [] if trainer is None else trainer.state.log_history
    return {
        "schema_version": SCHEMA_VERSION,
        **made_now(),
        "model": given["model_name_or_path"],
        "class_names": data.class_names,
        "attacks": {name: attack.as_dict() for name, attack in attacks.items()},
        "shots": list(data.shots.dataset["sample_id"]),
        "n_test_images": len(made.images.labels),
        "skipped": {
            "shots": [one.as_dict() for one in data.skipped],
            "test": [one.as_dict() for one in made.images.skipped],
        },
        "suspects": suspects_of(trainer.dummy_triggers if trainer else None, data.class_names),
        "before": made.before,
        "encoder": made.encoder,
        "after": made.after,
        "prompts": made.prompts,
        "solution": trainer.solution.as_dict() if trainer is not None and trainer.solution is not None else None,
        "epochs": [entry for entry in history if "loss_bn" in entry],
        "peak_memory_bytes": peak_memory_bytes(training.device),
        "settings": json.loads(json.dumps({**given, **settings}, default=str)),
        "seed": training.seed,
    }


def save_purified(
    data: ShotsAndTest, made: Made, results: dict[str, Any], base: str, output: Path, repo_id: str | None
) -> None:
    """Adapter (under a temporary name first, the weights last), triggers, results, picture and card.

    The encoder's LoRA lies in its sub-folder already.
    """
    from peft_cbpt.reports.before_after import PICTURE_FILE, draw_before_after

    for stale in (RESULTS_FILE, PICTURE_FILE, TRIGGERS_FILE):
        (output / stale).unlink(missing_ok=True)
    staging = output / STAGING_FOLDER
    with removed_afterwards(staging):
        made.model.save_pretrained(str(staging))
        config = PeftConfig.from_pretrained(str(staging))
        config.base_model_name_or_path = base or None
        config.save_pretrained(str(staging))
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            os.replace(staging / name, output / name)
    dummies = made.trainer.dummy_triggers if made.trainer else None
    if dummies is not None and dummies.triggers:
        save_triggers(
            output / TRIGGERS_FILE, {f"{label}/{one}": found for (label, one), found in dummies.triggers.items()}
        )
    write_json(output / RESULTS_FILE, results)
    images = data.test.without(made.images.skipped)
    moments = ((made.images, made.undefended), (made.repaired, made.purified))
    draw_before_after(output / PICTURE_FILE, images, results, *moments)
    write_card(output, config, repo_id)
