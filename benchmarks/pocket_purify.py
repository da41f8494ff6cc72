"""Purify the pocket CLIP with each configuration and seed, and the pocket SigLIP, and print two tables.

    python benchmarks/pocket_purify.py

Runs only the cells that are missing in benchmarks/results/, about two minutes each on 2 cores.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from peft_cbpt.cli import main as peft_cbpt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CONFIGS = {
    "the paper's numbers read literally (runner-up; l2 6/255, raw gradient)": "purify_literal",
    "`--only prompts`, otherwise the default": "purify_prompts",
    "default: the encoder, and prompts on it": "purify",
}
SIGLIP = {"`--only prompts`, 20 classes": "purify_siglip"}
SEEDS = (0, 1, 2)
KEPT = (
    "date",
    "model",
    "n_test_images",
    "suspects",
    "before",
    "encoder",
    "after",
    "seconds",
    "peak_memory_bytes",
    "settings",
    "versions",
)


def cell(config: str, seed: int) -> dict:
    """The stored result of one run, made now if it is missing."""
    file = RESULTS / f"pocket_{config}_seed{seed}.json"
    if not file.exists():
        with tempfile.TemporaryDirectory() as folder:
            settings = ROOT / "recipes" / "configs" / "pocket" / f"{config}.yaml"
            options = [
                "--seed",
                str(seed),
                "--output_dir",
                folder,
                "--feature_cache_dir",
                f"{folder}/cache",
            ]
            code = peft_cbpt(["purify", "--config", str(settings), *options])
            if code:
                sys.exit(code)
            results = json.loads((Path(folder) / "results.json").read_text())
        del results["settings"]["output_dir"]
        kept = {"seed": seed, **{key: results[key] for key in KEPT if key in results}}
        file.write_text(json.dumps(kept, indent=2) + "\n")
    return json.loads(file.read_text())


def figures(cells: list[dict], moment: str) -> str:
    """Mean and standard deviation over seeds of CA, ASR and accuracy under the trigger, as table columns."""
    rows = [(c[moment]["clean_accuracy"], *c[moment]["attacks"]["badnet"].values()) for c in cells]
    columns = [[100 * value for value in column] for column in zip(*rows, strict=True)]
    wanted = [columns[0], columns[1], columns[3]]
    return " | ".join(f"{statistics.mean(column):.1f} ± {statistics.stdev(column):.1f}" for column in wanted)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print_table("pocket CLIP, BadNet", CONFIGS)
    print()
    print_table("pocket SigLIP, BadNet", SIGLIP)


def print_table(title: str, configs: dict[str, str]) -> None:
    """The cells of some configurations as a Markdown table; those that are missing are run."""
    cells = {label: [cell(config, seed) for seed in SEEDS] for label, config in configs.items()}
    print(f"| {title} | clean accuracy | attack success | accuracy under trigger |")
    print("|---|---|---|---|")
    first = next(iter(cells.values()))
    print(f"| no defence | {figures(first, 'before')} |")
    for label, runs in cells.items():
        print(f"| {label} | {figures(runs, 'after')} |")


if __name__ == "__main__":
    main()
