"""Purify every backdoored pocket CLIP of the zoo with the default, and print a table.

    python benchmarks/zoo_purify.py output/zoo

Runs only the cells that are missing in benchmarks/results/zoo_purify/, about a minute each on 2 cores. 60 classes, 16
shots, 1,200 test images; the shots and the training have the seed of the poisoned model.
"""

import json
import sys
import tempfile
from pathlib import Path

from peft_cbpt.cli import main as peft_cbpt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "zoo_purify"
CONFIG = ROOT / "recipes" / "configs" / "pocket" / "purify.yaml"
KEPT = ("date", "n_test_images", "suspects", "before", "after", "seconds", "settings", "versions")


def cell(model: Path) -> dict:
    """The stored result for one poisoned model, made now if it is missing."""
    file = RESULTS / f"{model.name}.json"
    if not file.exists():
        seed = json.loads((model / "training.json").read_text())["settings"]["seed"]
        with tempfile.TemporaryDirectory() as folder:
            options = ["--config", str(CONFIG), "--model_name_or_path", str(model), "--attacks", str(model)]
            options += ["--seed", str(seed), "--output_dir", folder, "--cache_dir", f"{folder}/cache"]
            if code := peft_cbpt(["purify", *options, "--save_strategy", "no"]):
                sys.exit(code)
            results = json.loads((Path(folder) / "results.json").read_text())
        for name in ("output_dir", "cache_dir"):
            del results["settings"][name]
        RESULTS.mkdir(parents=True, exist_ok=True)
        kept = {"model": model.name, "seed": seed, **{key: results[key] for key in KEPT}}
        file.write_text(json.dumps(kept, indent=2) + "\n")
    return json.loads(file.read_text())


def row(result: dict) -> str:
    """One line of the table: CA, ASR and accuracy under the trigger before and after, and what was suspected."""
    moments = []
    for moment in ("before", "after"):
        (attack,) = result[moment]["attacks"].values()
        shares = result[moment]["clean_accuracy"], attack["attack_success_rate"], attack["robust_accuracy"]
        moments.append(" / ".join(f"{100 * share:.1f}" for share in shares))
    suspects = ", ".join(f"{one['class']} ({one['evidence']})" for one in result["suspects"]) or "none"
    return f"| {result['model']} | {' | '.join(moments)} | {suspects} |"


def main(zoo: Path) -> None:
    models = sorted(file.parent for file in zoo.glob("*/training.json"))
    rows = [row(cell(model)) for model in models]
    print("| model | no defence: CA / ASR / robust | default: CA / ASR / robust | suspected |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
