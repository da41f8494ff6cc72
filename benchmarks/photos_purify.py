"""Purify poisoned CLIPs of photographs, with the whole default and with prompts alone, and print a table.

    python -m benchmarks.photos_purify output/photozoo/badnet-banana-seed0 output/photozoo/sig-banana-seed0
    python -m benchmarks.photos_purify          # the table of the cells that are stored

docs/photographs.md says how the models and `output/photos` are made. A cell is a model and what is made; those that
are missing in benchmarks/results/photos are run, about ten minutes each on one core.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.pocket_purify import KEPT
from peft_cbpt.cli import main as peft_cbpt
from peft_cbpt.common.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "photos"
CONFIG = ROOT / "recipes" / "configs" / "photos" / "purify.yaml"
MADE = {"both": [], "prompts": ["--only", "prompts"]}


def cell(model: str, made: str) -> None:
    """Store the figures of one run, if they are missing."""
    file = RESULTS / f"{Path(model).name}-{made}.json"
    if file.is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model_name_or_path", model, "--attacks", model, "--output_dir", folder, *MADE[made]]
        if code := peft_cbpt(["purify", "--config", str(CONFIG), *options]):
            sys.exit(code)
        results = json.loads((Path(folder) / "results.json").read_text())
    del results["settings"]["output_dir"]
    RESULTS.mkdir(exist_ok=True)
    kept = (*KEPT, "commit", "prompts", "solution")
    write_json(file, {"made": made, **{key: results[key] for key in kept if key in results}})


def figures(moment: dict[str, Any] | None) -> str:
    """CA / ASR / true class under the trigger, in %."""
    if moment is None:
        return ""
    (attack,) = moment["attacks"].values()
    shares = moment["clean_accuracy"], attack["attack_success_rate"], attack["robust_accuracy"]
    return " / ".join(f"{100 * share:.1f}" for share in shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders of poisoned CLIPs")
    parser.add_argument("--made", nargs="+", default=list(MADE), choices=list(MADE))
    options = parser.parse_args()
    for model in options.models:
        for made in options.made:
            cell(model, made)
    print("| model | made | before | encoder alone | after |\n|---|---|---|---|---|")
    for file in sorted(RESULTS.glob("*.json")):
        one = json.loads(file.read_text())
        moments = (figures(one[name]) for name in ("before", "encoder", "after"))
        print(f"| {file.stem.removesuffix('-' + one['made'])} | {one['made']} | {' | '.join(moments)} |")


if __name__ == "__main__":
    main()
