"""Kill a purification with SIGKILL at random moments, resume it each time, and compare with an unbroken run.

    python benchmarks/kill_and_resume.py [--kills 10] [--seed 0]

A tiny job on the pocket world, with both kinds of target; some minutes on 2 cores. Stores
benchmarks/results/kill_and_resume.json.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "kill_and_resume.json"
JOB = """--model_name_or_path pocket:badnet --dataset_name pocket:base --num_classes 6 --num_shots 2
--test_images_per_class 2 --inversion_batch_size 4
--use_cpu --disable_tqdm true""".split()
SPAWN = multiprocessing.get_context("spawn")
LOOP = "--warmup_epochs 2 --per_device_train_batch_size 4 --norm inf --inversion_step_rule sign --inversion_lr 0.008"


def run_purify(output: Path, target: str, epochs: int) -> None:
    """Go on with the run in `output`, or begin it, in silence; ends the process."""
    from peft_cbpt.cli import main

    inner = LOOP.split() if target == "runner_up" else []
    options = [
        *JOB,
        *inner,
        "--dummy_triggers",
        target,
        "--output_dir",
        str(output),
        "--feature_cache_dir",
        str(output / "cache"),
    ]
    options += ["--num_train_epochs", str(epochs), "--resume_from_checkpoint", "true"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        sys.exit(main(["purify", "--only", "prompts", *options]))


def context(output: Path) -> torch.Tensor:
    (learned,) = load_file(output / "adapter_model.safetensors").values()
    return learned


def n_files(output: Path) -> int:
    """Files in the cache and in checkpoints; folders may come and go meanwhile."""
    return sum(len(files) for folder in output.glob("c*") for _, _, files in os.walk(folder))


def wait_for_training(process: BaseProcess, output: Path, before: int) -> bool:
    """Until the run has written something to its cache or a new checkpoint; whether it is still going."""
    while process.is_alive():
        if n_files(output) != before:
            return True
        time.sleep(0.01)
    return False


def run_with_kills(
    output: Path, target: str, epochs: int, kills: int, longest_wait: float, seed: int, processes: BaseContext
) -> list[dict]:
    """Kill `kills` times, each a random while after the run made its first progress; then let it end.

    Returns:
        For each kill, seconds after the start, and the checkpoints and shards that were on disk.
    """
    rng, killed = random.Random(seed), []
    while True:
        before = n_files(output)
        start = time.perf_counter()
        process = processes.Process(target=run_purify, args=(output, target, epochs))
        process.start()
        if len(killed) < kills and wait_for_training(process, output, before):
            time.sleep(rng.uniform(0, longest_wait))
            process.kill()
        process.join()
        if process.exitcode == 0:
            return killed
        if process.exitcode != -signal.SIGKILL:
            sys.exit(f"the run ended with code {process.exitcode}")
        checkpoints = sorted(path.name for path in output.glob("checkpoint-*"))
        shards = sum(1 for _ in output.glob("cache/*/*.safetensors"))
        seconds = round(time.perf_counter() - start, 2)
        killed.append({"seconds": seconds, "checkpoints": checkpoints, "shards": shards})
        print(f"killed after {seconds:.1f} s, on disk: {shards} shards, {checkpoints}", flush=True)


def compare(
    folder: Path, target: str, epochs: int, kills: int, longest_wait: float, seed: int, processes: BaseContext = SPAWN
) -> dict:
    """The largest difference between an unbroken run and a killed one, and what was on disk at each kill.

    `processes` starts them.
    """
    run_with_kills(folder / "whole", target, epochs, 0, 0, seed, processes)
    killed = run_with_kills(folder / "killed", target, epochs, kills, longest_wait, seed, processes)
    difference = (context(folder / "whole") - context(folder / "killed")).abs().max().item()
    return {"epochs": epochs, "seed": seed, "kills": killed, "largest_context_difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--longest_wait", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = {}
    for target in ("universal", "runner_up"):
        with tempfile.TemporaryDirectory() as folder:
            result = compare(Path(folder), target, options.epochs, options.kills, options.longest_wait, options.seed)
        print(f"{target}: {len(result['kills'])} kills, largest difference {result['largest_context_difference']}")
        results[target] = result
    RESULT.write_text(json.dumps({"targets": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
