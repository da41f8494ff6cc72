"""How fast purification is, beside a straightforward loop (benchmarks/straightforward.py) in the same run.

    python benchmarks/speed.py             # run the cells that are missing, then render
    python benchmarks/speed.py --render    # picture and table of docs/performance.md from the stored cells
    python benchmarks/speed.py --quick     # everything at a tiny size, into a temporary folder
    python benchmarks/speed.py --only memory processes

Each cell runs in a process of its own and is stored as benchmarks/results/speed_CELL.json when it is done.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CELLS = ("pocket", "vit_b32", "rn50", "memory", "processes", "gpu")
PAGE, PICTURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "images" / "speed.png"
START, END = "<!-- figures: written by benchmarks/speed.py -->", "<!-- end of figures -->"


def missing_part(cell: str) -> str | None:
    """What a cell needs and is not there."""
    if cell in ("rn50", "memory", "gpu") and find_spec("peft_cbpt.clip.resnet") is None:
        return "the ResNet tower"
    if cell == "gpu" and not torch.cuda.is_available():
        return "a GPU"
    return None


def run_cell(cell: str, quick: bool, folder: Path) -> None:
    """Measure one cell in this process and store it."""
    from benchmarks import speed_pocket, speed_processes, speed_shape, speed_whole_runs
    from benchmarks.speed_timing import peak_bytes
    from peft_cbpt.common.versions import package_versions

    begin = datetime.now(timezone.utc)
    if cell in ("vit_b32", "rn50"):
        pocket = json.loads((folder / "speed_pocket.json").read_text())
        result = speed_shape.shape(cell, quick, pocket["pairs_per_image"])
    else:
        measures = {"pocket": speed_pocket.pocket, "memory": speed_shape.memory}
        measures |= {"processes": speed_processes.processes, "gpu": speed_whole_runs.gpu}
        result = measures[cell](quick)

    about = {"date": begin.isoformat(timespec="seconds"), "threads": torch.get_num_threads(), "quick": quick}
    about |= {"peak_bytes": peak_bytes(), "versions": package_versions()}
    (folder / f"speed_{cell}.json").write_text(json.dumps(result | about, indent=2) + "\n")


def stored(cell: str) -> dict | None:
    """A cell's result, if it was run."""
    file = RESULTS / f"speed_{cell}.json"
    return json.loads(file.read_text()) if file.exists() else None


def table() -> str:
    """The figures as Markdown; says which are missing."""
    lines = ["| job | straightforward, s | ours, s | times faster | FLOPs, straightforward / ours / needed |"]
    lines.append("|---|---|---|---|---|")
    if pocket := stored("pocket"):
        seconds = pocket["seconds"]
        label = f"pocket CLIP, {pocket['classes']} classes, whole run"
        lines.append(f"| {label} | {seconds['straightforward']:.0f} | {seconds['ours']:.0f} | "
                     f"{pocket['times_faster']:.1f} | |")  # fmt: skip
    for name, title in (("vit_b32", "ViT-B/32"), ("rn50", "RN50")):
        for cell in (stored(name) or {"cells": []})["cells"]:
            total, flops = cell["seconds_extrapolated"], cell["flops"]
            flops_text = " / ".join(f"{flops[key]:.2e}" for key in ("straightforward", "ours", "needed"))
            lines.append(f"| {title}, {cell['classes']} classes, extrapolated | {total['straightforward']:.0f} | "
                         f"{total['ours']:.0f} | {cell['times_faster']:.1f} | {flops_text} |")  # fmt: skip
    notes = []
    if pocket:
        ours, plain = pocket["after"]["ours"], pocket["after"]["straightforward"]
        notes.append(
            f"Pocket run: largest difference of the context {pocket['largest_context_difference']:.1e}; "
            f"clean accuracy {ours['clean_accuracy']:.4f} and {plain['clean_accuracy']:.4f}, attack success "
            f"{ours['attack_success_rate']:.4f} and {plain['attack_success_rate']:.4f}; "
            f"{pocket['pairs_per_image']:.2f} inversions an image; hit rate of the last epoch "
            f"{pocket['cache_hit_rate'][-1]:.2f}."
        )
    if memory := stored("memory"):
        notes.append(f"Peak memory, RN50, {memory['classes']} classes: {memory['peak_bytes'] / 1e9:.2f} GB.")
    for job, runs in (stored("processes") or {"jobs": {}})["jobs"].items():
        notes.append(_about_processes(job, runs))
    if gpu := stored("gpu"):
        memory_gb = gpu["gpu_peak_bytes"] / 1e9
        notes.append(f"{gpu['device']}: {gpu['classes']} classes in {gpu['seconds']:.0f} s, {memory_gb:.1f} GB.")
    if absent := [cell for cell in CELLS if stored(cell) is None]:
        notes.append(f"Not measured yet: {', '.join(absent)}.")
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n"


def _about_processes(job: str, runs: dict) -> str:
    seconds = runs["seconds"]
    one, every, two, at_once = (seconds[name] for name in (
        "one process, one thread", "one process, all threads", "two processes, one thread each",
        "two such runs at once"))  # fmt: skip
    return (
        f"Processes, {job}: one process {one:.0f} s with one thread and {every:.0f} s with all; two "
        f"processes with one thread each {two:.0f} s, {one / two:.2f} and {every / two:.2f} times as fast. Two runs "
        f"of one thread that have nothing to do with each other take {at_once:.0f} s at the same time: this machine "
        f"allows {2 * one / at_once:.2f} times. Largest difference of the context "
        f"{runs['largest_context_difference']:.1e}."
    )


def draw() -> None:
    """Stacked bars of seconds by stage, for every shape and number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = [cell for name in ("vit_b32", "rn50") if (cell := stored(name))]
    if not shapes:
        return
    figure, axes = plt.subplots(1, len(shapes), figsize=(5 * len(shapes), 3.5), squeeze=False)
    stages = ("clean images", "inversion", "text tower")
    for axis, measured in zip(axes[0], shapes, strict=True):
        bars = [(cell, who) for cell in measured["cells"] for who in ("straightforward", "ours")]
        left = [0.0] * len(bars)
        labels = [f"{cell['classes']} classes, {who}" for cell, who in bars]
        for stage in stages:
            hours = [cell["seconds_by_stage"][who][stage] / 3600 for cell, who in bars]
            axis.barh(labels, hours, left=left, label=stage)
            left = [start + more for start, more in zip(left, hours, strict=True)]
        axis.invert_yaxis()
        axis.set(title=measured["shape"], xlabel="hours on this CPU (extrapolated)", xscale="symlog")
        axis.legend(fontsize=8)
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=120, metadata={"Software": None})


def render() -> None:
    """Write the picture and the figures of the page."""
    before, rest = PAGE.read_text().split(START)
    after = rest.split(END)[1]
    draw()
    picture = "\n![Seconds by stage](images/speed.png)\n" if PICTURE.exists() else ""
    PAGE.write_text(f"{before}{START}\n\n{table()}{picture}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--only", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--cell", choices=CELLS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        return run_cell(options.cell, options.quick, options.folder)
    if not options.render:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if options.quick else RESULTS
            for cell in options.only:
                if (folder / f"speed_{cell}.json").exists():
                    continue
                if reason := missing_part(cell):
                    print(f"{cell}: left out, {reason} is missing")
                    continue
                print(f"{cell}: running", flush=True)
                again = [sys.executable, "-m", "benchmarks.speed", "--cell", cell, "--folder", str(folder)]
                subprocess.run([*again, *["--quick"] * options.quick], check=True, cwd=ROOT)
                if options.quick:
                    print((folder / f"speed_{cell}.json").read_text())
    if not options.quick:
        render()


if __name__ == "__main__":
    main()
