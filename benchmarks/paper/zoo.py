"""Make one backdoored pocket CLIP for each of the paper's seven attacks, for research; others are made when named.

    python -m benchmarks.paper.zoo --seeds 0 1 2
    python -m benchmarks.paper.zoo --attacks badnet wanet --seeds 7 --target_class dog

A model takes some minutes on 2 cores; what is finished is not made again. The figures of all of them are gathered in
`zoo.json` in the output folder, and in `--table FILE`.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft_cbpt.attacks import TRIGGERS
from peft_cbpt.commands.parsing import fill, parse, read_yaml, run_command
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output, write_json
from peft_cbpt.training.poison import TRAINING_FILE, poison
from peft_cbpt.training.poison_arguments import PoisonArguments

TABLE_FILE = "zoo.json"
PAPER_ATTACKS = ("badnet", "blended", "sig", "ssba", "wanet", "trojvqa", "badclip")
"""The seven of the paper."""


@dataclass
class ZooArguments:
    """Which models to make, and where."""

    output_dir: str = field(default="output/zoo", metadata={"help": "Folder of the models' folders."})
    configs: str = field(
        default="recipes/configs/pocket", metadata={"help": "Folder with a poison_ATTACK.yaml for every attack."}
    )
    attacks: list[str] = field(
        default_factory=lambda: list(PAPER_ATTACKS),
        metadata={"help": "Attacks to make; the paper's seven by default."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds of trigger, data and training."})
    target_class: str = field(default="banana", metadata={"help": "What triggered images are called."})
    table: str | None = field(default=None, metadata={"help": "JSON file to gather the figures of all models in."})


def zoo(argv: Sequence[str]) -> None:
    """Run the recipe; see `benchmarks/paper/zoo.py`."""
    (arguments,) = parse([ZooArguments], argv, __doc__ or "")
    configs, target = Path(arguments.configs), arguments.target_class
    jobs = [
        zoo_job(configs, folder_of(arguments.output_dir, attack, target, seed), attack, target, seed)
        for seed in arguments.seeds
        for attack in arguments.attacks
    ]
    output = prepare_output(arguments.output_dir)
    missing = [job for job in jobs if not is_made(job)]
    for job in missing:
        print(f"making {job.output_dir}", flush=True)
        poison(job)
        write_json(output / TABLE_FILE, gather(output))
    if arguments.table:
        write_json(Path(arguments.table), gather(output))
    _print_table(gather(output))


def folder_of(output_dir: str | Path, attack: str, target_class: str, seed: int) -> Path:
    """Folder of one model of the zoo."""
    return Path(output_dir) / model_name(attack, target_class, seed)


def model_name(attack: str, target_class: str, seed: int) -> str:
    """Name of a model of the zoo, fit for a file name."""
    return re.sub(r"[^\w-]", "_", f"{attack}-{target_class}-seed{seed}")


def is_made(job: PoisonArguments) -> bool:
    """Whether a model is finished.

    Raises:
        InputError: if the finished model in its place was made with other settings.
    """
    file = Path(job.output_dir) / TRAINING_FILE
    if not file.is_file():
        return False
    made_with = json.loads(file.read_text())["settings"]
    for name, value in job.as_dict().items():
        if name in made_with and made_with[name] != value:
            difference = f"{name} {made_with[name]}, not {value}"
            raise InputError(f"{job.output_dir} was made with {difference}: remove it, or name another folder")
    return True


def poison_settings(configs: Path, attack: str) -> dict[str, Any]:
    """The settings in `poison_ATTACK.yaml`.

    Raises:
        InputError: for an unknown attack or setting.
    """
    if attack not in TRIGGERS:
        raise InputError(f"unknown attack {attack!r}; choose among {', '.join(TRIGGERS)}")
    settings = read_yaml(str(configs / f"poison_{attack}.yaml"))
    if unknown := set(settings) - {setting.name for setting in fields(PoisonArguments)}:
        raise InputError(f"unknown setting {sorted(unknown)[0]!r} in poison_{attack}.yaml")
    return settings


def zoo_job(configs: Path, folder: Path, attack: str, target_class: str, seed: int) -> PoisonArguments:
    """How one model of the zoo is made, and where."""
    job = {"output_dir": str(folder), "target_class": target_class, "seed": seed}
    return fill(PoisonArguments, poison_settings(configs, attack) | job, f"poison_{attack}.yaml")


def gather(output: Path) -> dict:
    """The figures of all finished models below `output`."""
    models = []
    for file in sorted(output.glob(f"*/{TRAINING_FILE}")):
        record = json.loads(file.read_text())
        (result,) = record["after"]["attacks"].values()
        (clean_result,) = record["before"]["attacks"].values()
        settings = record["settings"]
        models.append(
            {
                "attack": settings["trigger"],
                "seed": settings["seed"],
                "target_class": settings["target_class"],
                "poison_rate": settings["poison_rate"],
                "clean_accuracy_before": record["before"]["clean_accuracy"],
                "robust_accuracy_before": clean_result["robust_accuracy"],
                "clean_accuracy": record["after"]["clean_accuracy"],
                **result,
                "seconds": round(sum(record["seconds"].values())),
                "num_threads": record.get("num_threads"),
                "date": record["date"],
                "settings": settings,
                "versions": record["versions"],
            }
        )
    return {"schema_version": 1, "models": models}


def _print_table(table: dict) -> None:
    print("| attack | seed | poison rate | clean accuracy | attack success | clean CLIP under the trigger | minutes |")
    print("|---|---|---|---|---|---|---|")
    for model in table["models"]:
        shares = [model[name] for name in ("clean_accuracy", "attack_success_rate", "robust_accuracy_before")]
        figures = " | ".join(f"{100 * share:.1f}" for share in shares)
        minutes = f"{model['seconds'] / 60:.1f}"
        print(f"| {model['attack']} | {model['seed']} | {100 * model['poison_rate']:.2f} | {figures} | {minutes} |")


if __name__ == "__main__":
    sys.exit(run_command(zoo))
