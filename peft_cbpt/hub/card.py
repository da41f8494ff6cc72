"""The model card: what an adapter protects, for which base, with which evidence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig

from peft_cbpt.common.files import write_text
from peft_cbpt.hub.adapter_folder import POCKET_PREFIX, base_name, find_pictures, read_results
from peft_cbpt.hub.evidence import TASK, figure_rows, is_hub_dataset, measured_dataset, model_index, moments, suspected
from peft_cbpt.tuner import CBPTConfig

CARD_FILE = "README.md"
MARK = "<!-- Written by peft_cbpt at every push. Remove this line to keep a card of your own. -->"
GENERIC_TITLE = "# Model Card for Model ID"
"""Stands in the card that PEFT writes with every adapter."""
TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
SHOWN_SETTINGS = (
    "only",
    "num_shots",
    "num_context_tokens",
    "context_init",
    "unified_context",
    "class_token_position",
    "num_train_epochs",
    "warmup_epochs",
    "learning_rate",
    "lambda_bn",
    "lambda_adv",
    "lambda_align",
    "alpha",
    "dummy_triggers",
    "outer_solver",
    "perturbed_share",
    "universal_share",
    "positives",
    "norm",
    "epsilon",
    "inversion_steps",
    "inversion_lr",
    "inversion_step_rule",
    "seed",
)


def make_card(
    config: PeftConfig,
    results: Mapping[str, Any] | None,
    pictures: list[str],
    repo_id: str | None = None,
    base_model_id: str | None = None,
) -> ModelCard:
    """The card of an adapter.

    Args:
        config: The adapter's config, of prompts (CBPT) or of a repaired encoder alone (LoRA).
        results: What purify measured (docs/results-schema.md), without local paths.
        pictures: Files to show or link, relative to the card.
        repo_id: Where the adapter will lie.
        base_model_id: Hub id of the base model, where the config does not name it.
    """
    prompts = config if isinstance(config, CBPTConfig) else None
    title = (repo_id or ("CBPT adapter" if prompts else "Purified encoder")).split("/")[-1]
    repaired = prompts is None or bool(prompts.encoder_lora)
    base = base_name(config, base_model_id)
    on_hub = base is not None and not base.startswith(POCKET_PREFIX)
    datasets = {results["settings"]["dataset_name"], measured_dataset(results)} if results else set()
    metadata = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        datasets=sorted(filter(is_hub_dataset, datasets)) or None,
        library_name="peft",
        pipeline_tag=TASK,
        tags=["cbpt", "clip", "backdoor-defense", *(["prompt-tuning"] if prompts else []), *(["lora"] * repaired)],
        model_name=title if results else None,
        eval_results=model_index(results) if results else None,
    )
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        mark=MARK,
        title=title,
        adapter=repo_id or "path/or/hub-id/of/this/adapter",
        base=base,
        base_is_pocket=base is not None and not on_hub,
        fingerprint=_fingerprint(prompts, results),
        class_names=prompts.class_names if prompts else (results or {}).get("class_names"),
        with_prompts=prompts is not None,
        repaired=repaired,
        columns=list(moments(results).values()) if results else [],
        results=results,
        test_dataset=measured_dataset(results) if results else None,
        rows=figure_rows(results) if results else [],
        suspected=suspected(results) if results else None,
        settings={
            name: results["settings"][name] for name in SHOWN_SETTINGS if results["settings"].get(name) is not None
        }
        if results
        else {},
        images=[picture for picture in pictures if picture.endswith(".png")],
        pages=[picture for picture in pictures if picture.endswith(".html")],
    )


def _fingerprint(prompts: CBPTConfig | None, results: Mapping[str, Any] | None) -> str | None:
    """Of the base's weights: from the config, which a LoRA has none in, or the results."""
    recorded = (prompts.base_fingerprint or {}).get("float32") if prompts else None
    return recorded or (results or {}).get("base_fingerprint", {}).get("before")


def write_card(folder: Path, config: PeftConfig, repo_id: str | None = None, base_model_id: str | None = None) -> None:
    """Write the card of the adapter in `folder` as its `README.md`, unless one of somebody's own is there."""
    file = folder / CARD_FILE
    if file.is_file() and not any(ours in file.read_text(encoding="utf-8") for ours in (MARK, GENERIC_TITLE)):
        return
    card = make_card(config, read_results(folder), find_pictures(folder), repo_id, base_model_id)
    write_text(file, str(card))
