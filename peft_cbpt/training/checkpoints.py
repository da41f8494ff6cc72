"""What features depend on, which job a checkpoint belongs to, and whether it is whole."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from peft_cbpt.clip.pixels import PixelNormalizer
from peft_cbpt.common.errors import InputError
from peft_cbpt.detection.target_search import ALL_BUDGETS, SEARCH_IMAGES, SEARCHES
from peft_cbpt.detection.universal import MOST_WAVES, Budget
from peft_cbpt.features.disk_cache import fingerprint
from peft_cbpt.method.inversion import InversionSettings
from peft_cbpt.training.dummy_triggers import DummyTriggerSettings
from peft_cbpt.training.samples import Samples
from peft_cbpt.training.universal_features import TRIGGER_BUDGETS
from peft_cbpt.tuner import CBPTConfig
from peft_cbpt.tuner.fingerprint import computation, weights_fingerprint

JOB_FILE = "job.json"
FORMAT = 1
"""Raised when the same key would mean other features."""


def bank_key(base: Any, samples: Samples, normalize: PixelNormalizer, device: str) -> dict[str, Any]:
    """All that clean features depend on: the base model, images in their order, preprocessing, kind of device."""
    normalized = {"mean": list(normalize.mean), "std": list(normalize.std)}
    tower = {"computation": computation(base.config.vision_config), "dtype": str(base.dtype)}
    encoder = {"weights": weights_fingerprint(base), **tower}
    return {"format": FORMAT, "base": encoder, "samples": samples.digest, "normalize": normalized, "device": device}


def inversion_key(
    bank: dict[str, Any], settings: InversionSettings, positives: str, seed: int, dtype: str
) -> dict[str, Any]:
    """All that perturbed features by (row, y') depend on; the seed only where positives are drawn."""
    inversion = {name: str(value) for name, value in asdict(settings).items()}
    key = {"bank": bank, "inversion": inversion, "positives": positives, "dtype": dtype}
    return key | {"seed": seed} if positives == "random" else key


def search_key(bank: dict[str, Any], seed: int) -> dict[str, Any]:
    """All that features of the search for the target depend on."""
    search = {"searches": SEARCHES, "images": SEARCH_IMAGES, "triggers": _triggers(ALL_BUDGETS)}
    return {"bank": bank, "search": search, "seed": seed}


def universal_key(bank: dict[str, Any], class_features: Tensor, seed: int) -> dict[str, Any]:
    """All that universal triggers, and features under them, depend on; prompts are told by their features, to 1e-4."""
    prompts = hashlib.sha256((class_features.cpu().double() * 1e4).round().numpy().tobytes()).hexdigest()
    return {"bank": bank, "prompts": prompts, "triggers": _triggers(TRIGGER_BUDGETS), "seed": seed}


def _triggers(budgets: Sequence[Budget]) -> dict[str, Any]:
    return {"budgets": [asdict(budget) for budget in budgets], "waves": MOST_WAVES}


def job_hash(inversion: dict[str, Any], dummies: DummyTriggerSettings | None, prompts: CBPTConfig, seed: int) -> str:
    """SHA-256 over what a run must share with the one that it resumes; `dummies` of `target="suspected"` only."""
    wording = {name: getattr(prompts, name) for name in ("class_names", "class_token_position", "template")}
    return fingerprint({"inversion": inversion, "dummies": dummies and asdict(dummies), "seed": seed, **wording})


def write_job(folder: Path, job: str) -> None:
    """Say in a checkpoint which job it is of."""
    (folder / JOB_FILE).write_text(json.dumps({"job": job}) + "\n", encoding="utf-8")


def check_checkpoint(folder: Path, job: str, adapter_name: str, context_shape: tuple[int, ...]) -> None:
    """See that a checkpoint is whole and belongs to a job.

    PEFT saves adapters of other names than `default` in folders of their names.

    Raises:
        InputError: if a file is missing or damaged, or if the checkpoint was made by another job or for another shape
            of context.
    """
    try:
        json.loads((folder / "trainer_state.json").read_text())
        weights = folder if adapter_name == "default" else folder / adapter_name
        (context,) = load_file(weights / "adapter_model.safetensors").values()
        made_by = json.loads((folder / JOB_FILE).read_text())["job"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder} is no whole checkpoint: give another, or start anew") from error
    if made_by != job or tuple(context.shape) != context_shape:
        raise InputError(
            f"{folder} was made with another model, images, prompts, seed or inversion settings: "
            "resume with the same ones, or start anew"
        )
