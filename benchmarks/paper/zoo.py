"""Make one backdoored pocket CLIP for each of the paper's seven attacks, for research; others are made when named.

    python -m benchmarks.paper.zoo --seeds 0 1 2
    python -m benchmarks.paper.zoo --attacks badnet wanet --seeds 7 --target_class dog
    python -m benchmarks.paper.zoo --attacks other --output_dir output/other_zoo

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

from peft_cbpt.attacks.attack_file import ALL_TO_ALL, ATTACK_FILE, read_attack, read_attacks
from peft_cbpt.commands.parsing import fill, parse, read_yaml, run_command
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output, write_json
from peft_cbpt.hub.sharing import without_local_paths
from peft_cbpt.training.poison import TRAINING_FILE, poison
from peft_cbpt.training.poison_arguments import PoisonArguments

TABLE_FILE = "zoo.json"
PAPER_ATTACKS = ("badnet", "blended", "sig", "ssba", "wanet", "trojvqa", "badclip")
"""The seven of the paper."""
OTHER_ATTACKS = ("random_patch", "checker", "stripes", "triangles", "text", "picture", "nashville", "white_square")
OTHER_ATTACKS += ("ftrojan", "bpp", "low_frequency", "reflection", "input_aware", "lira")
OTHER_ATTACKS += ("several", "all_to_all", "clean_label")
"""All others that have a configuration; `--attacks other` makes them."""


@dataclass
class ZooArguments:
    """Which models to make, and where."""

    output_dir: str = field(default="output/zoo", metadata={"help": "Folder of the models' folders."})
    configs: str = field(
        default="recipes/configs/pocket", metadata={"help": "Folder with a poison_ATTACK.yaml for every attack."}
    )
    attacks: list[str] = field(
        default_factory=lambda: list(PAPER_ATTACKS),
        metadata={"help": "Attacks to make, or `other`; the paper's seven by default."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds of trigger, data and training."})
    target_class: str = field(default="banana", metadata={"help": "What triggered images are called."})
    table: str | None = field(default=None, metadata={"help": "JSON file to gather the figures of all models in."})


def zoo(argv: Sequence[str]) -> None:
    """Run the recipe; see `benchmarks/paper/zoo.py`."""
    (arguments,) = parse([ZooArguments], argv, __doc__ or "")
    configs, target = Path(arguments.configs), arguments.target_class
    attacks = OTHER_ATTACKS if arguments.attacks == ["other"] else arguments.attacks
    jobs = [
        zoo_job(configs, folder_of(arguments.output_dir, attack, target, seed), attack, target, seed)
        for seed in arguments.seeds
        for attack in attacks
    ]
    output = prepare_output(arguments.output_dir)
    missing = [job for job in jobs if not is_made(job)]
    for job in missing:
        print(f"making {job.output_dir}", flush=True)
        poison(job)
        write_json(output / TABLE_FILE, gather(output))
    if arguments.table:
        write_json(Path(arguments.table), gather(output))
    print_table(gather(output))


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
    file, known = configs / f"poison_{attack}.yaml", configs.glob("poison_*.yaml")
    if not file.is_file():
        names = sorted(one.stem.removeprefix("poison_") for one in known)
        if not names:
            raise InputError(f"cannot read the settings of attacks: {configs} has no poison_ATTACK.yaml")
        raise InputError(f"unknown attack {attack!r}; choose among {', '.join(names)}")
    settings = read_yaml(str(file))
    if unknown := set(settings) - {setting.name for setting in fields(PoisonArguments)}:
        raise InputError(f"unknown setting {sorted(unknown)[0]!r} in poison_{attack}.yaml")
    return settings


def zoo_job(configs: Path, folder: Path, attack: str, target_class: str, seed: int) -> PoisonArguments:
    """How one model of the zoo is made, and where; one of an all-to-all attack has no target class."""
    settings = poison_settings(configs, attack)
    if settings.get("target_class") != ALL_TO_ALL:
        settings["target_class"] = target_class
    job = {"output_dir": str(folder), "seed": seed}
    return fill(PoisonArguments, settings | job, f"poison_{attack}.yaml")


def gather(output: Path) -> dict:
    """The figures of all finished models below `output`, of a model with several triggers for each of them."""
    models = []
    for file in sorted(output.glob(f"*/{TRAINING_FILE}")):
        record = json.loads(file.read_text())
        settings = record["settings"]
        for trigger, result in record["after"]["attacks"].items():
            models.append(
                {
                    "attack": file.parent.name.partition("-")[0],
                    "trigger": trigger,
                    "seed": settings["seed"],
                    "target_class": _targets(file.parent)[trigger],
                    "poison_rate": settings["poison_rate"],
                    "clean_accuracy_before": record["before"]["clean_accuracy"],
                    "robust_accuracy_before": record["before"]["attacks"][trigger]["robust_accuracy"],
                    "clean_accuracy": record["after"]["clean_accuracy"],
                    **result,
                    "seconds": round(sum(record["seconds"].values())),
                    "num_threads": record.get("num_threads"),
                    "date": record["date"],
                    "commit": record.get("commit"),
                    "settings": without_local_paths(settings),
                    "versions": record["versions"],
                }
            )
    return {"schema_version": 1, "models": models}


def _targets(folder: Path) -> dict[str, str]:
    """The target of each trigger of a model, under the names that `poison` gave them."""
    files = [folder / ATTACK_FILE, *sorted(folder.glob("attack_*.json"))]
    found = [read_attack(str(file)).target_class for file in files]
    return {name: one.target_class for name, one in read_attacks([str(file) for file in files], found).items()}


def print_table(table: dict) -> None:
    """The figures of the models, as Markdown."""
    columns = "attack|target|seed|poison rate|clean accuracy|attack success|clean CLIP under the trigger|minutes"
    print(f"| {columns.replace('|', ' | ')} |\n|{'---|' * 8}")
    for model in table["models"]:
        name = model["attack"] if model["trigger"] == model["attack"] else f"{model['attack']}: {model['trigger']}"
        shares = [model[one] for one in ("clean_accuracy", "attack_success_rate", "robust_accuracy_before")]
        figures = [f"{100 * model['poison_rate']:.2f}", *(f"{100 * share:.1f}" for share in shares)]
        minutes = f"{model['seconds'] / 60:.1f}"
        print(f"| {' | '.join([name, model['target_class'], str(model['seed']), *figures, minutes])} |")


if __name__ == "__main__":
    sys.exit(run_command(zoo))
