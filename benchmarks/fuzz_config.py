"""Random configs and options, in-process: each must end in a run, a plan or one line, and leave no half-written file.

    python benchmarks/fuzz_config.py --runs 2000 --seed 0 --processes 3

Starts from small forms of recipes/configs/pocket, changes settings, the YAML file and options at random, and
runs the command as far as its checks and its dry run go; where there is none, and now and then elsewhere, a tiny one.
Writes benchmarks/results/fuzz.json: how runs ended, and every fault with what led to it.
"""

import argparse
import io
import json
import os
import random
import runpy
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml
from accelerate.state import AcceleratorState, PartialState
from peft import get_peft_model
from safetensors.torch import load_file

from peft_cbpt.cli import main as cli
from peft_cbpt.commands.evaluate import EvaluateArguments
from peft_cbpt.commands.own_triggers import OwnTriggers
from peft_cbpt.commands.parsing import run_command
from peft_cbpt.commands.purify import PurifiedArguments
from peft_cbpt.commands.scan import ScanArguments
from peft_cbpt.common.files import write_json
from peft_cbpt.common.records import made_now
from peft_cbpt.convert.checkpoint_arguments import CheckpointArguments
from peft_cbpt.evaluation.evaluate import EvaluationArguments
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
from peft_cbpt.training.finetune import FinetuneArguments
from peft_cbpt.training.poison_arguments import PoisonArguments
from peft_cbpt.training.purify_arguments import PurifyArguments
from peft_cbpt.tuner.config import CBPTConfig

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/fuzz.json"
SECONDS, CPU_SECONDS = 1200, 60
"""After which a run counts as a hang."""
RUN_IN = 25
"""One run in so many is none of the dry ones."""
MODEL = {"model_name_or_path": "pocket:badnet"}
FEW = {"class_names": ["banana", "dog", "pizza"], "test_images_per_class": 1}
SHOTS = MODEL | FEW | {"dataset_name": "pocket:base", "num_shots": 1, "attacks": ["pocket:badnet"]}
PROMPTS = {
    "only": "prompts",
    "dummy_triggers": "runner_up",
    "inversion_steps": 1,
    "num_train_epochs": 2,
    "warmup_epochs": 1,
}
BOTH = {"num_shots": 2, "encoder_steps": 1, "encoder_kinds": ["wave"], "encoder_batch_size": 2, "num_train_epochs": 1}
PURIFY = (PurifiedArguments, PurifyArguments, CheckpointArguments, OwnTriggers, CBPTTrainingArguments)
TABLE = MODEL | FEW | {"datasets": ["pocket:v2"], "attacks": ["pocket:badnet"]}
EVALUATE = (EvaluateArguments, EvaluationArguments, CheckpointArguments, OwnTriggers)
ADAPTER = "adapter"
"""Folder of an adapter for FEW classes, in the folder of every run that names it."""
PAIRS = {"num_pairs": 8, "batch_size": 4, "num_epochs": 1, "num_classes": 3}
JOBS: dict[str, tuple[dict[str, Any], tuple[type, ...]]] = {
    "purify both": (SHOTS | BOTH, PURIFY),
    "purify prompts": (SHOTS | PROMPTS, PURIFY),
    "purify_encoder": (
        MODEL | {"images": "pocket:base", "num_images": 4, "max_steps": 1, "search_images": 2, "kinds": ["wave"]},
        (EncoderPurifierArguments, CheckpointArguments),
    ),
    "scan": (MODEL | {"dataset_name": "pocket:base", "num_images": 4}, (ScanArguments, CheckpointArguments)),
    "evaluate": (TABLE | {"classifiers": ["template"]}, EVALUATE),
    "evaluate adapter": (TABLE | {"classifiers": [ADAPTER], "detect": "pocket:base"}, EVALUATE),
    "poison": (
        PAIRS | {"trigger": "badnet", "trigger_settings": '{"patch_size": 0.125}', "poison_rate": 0.5}
        | {"target_class": "banana", "test_images_per_class": 1},
        (PoisonArguments,),
    ),
    "finetune": (MODEL | PAIRS | {"method": "ft"}, (FinetuneArguments,)),
}  # fmt: skip
SIZES: dict[str, dict[str, int]] = dict.fromkeys(JOBS, {}) | {
    "poison": {"num_pairs": 8, "num_epochs": 1, "patch_steps": 1, "patch_images": 4},
    "finetune": {"num_pairs": 8, "num_epochs": 1},
}
"""Options of the jobs that have no dry run, or a file that lost a line would be a valid run of hours."""
WEIGHTS = (4, 4, 3, 2, 2, 1, 2, 2)
"""Of the jobs: how often each is drawn."""
DRY = ("purify both", "purify prompts", "purify_encoder", "scan")
VALUES = (
    *(None, "", " ", "abc", "true", "1e-3", "nan", "1, 2", "{}", "ü\u202e", "pocket:base", "pocket:clean", "banana"),
    *("missing/folder", "~", ".", "/dev/null/x", "a/b", "no", "epoch", "steps", "all", "universal", "runner_up", "[]"),
    *(-1, 0, 1, 2, 7, 10**6, 10**18, -0.5, 0.5, 1e-30, 1e38, float("nan"), float("inf"), True, False),
    *([], [1], ["banana"], ["banana", "dog"], ["pocket:badnet"], [None], {"a": 1}, {"a": {"b": []}}),
)


@dataclass(frozen=True)
class Case:
    """A run: one of JOBS, whose first word is the command; the bytes of its YAML file, and options."""

    job: str
    config: bytes
    options: tuple[str, ...]


def draw_case(seed: int, number: int) -> Case:
    """The case of a number; the same for a seed on every machine."""
    rng = random.Random(f"{seed}/{number}")
    job = rng.choices(list(JOBS), WEIGHTS)[0]
    settings, kinds = JOBS[job]
    settings = dict(settings)
    names = [one.name for kind in kinds for one in fields(kind)]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        change_setting(rng, settings, names)
    text = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)
    options: list[str] = []
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        name, value = rng.choice([name for name in names if name not in SIZES[job]]), rng.choice(VALUES)
        options += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    fixed = [] if rng.random() < 0.05 else ["--output_dir", "out"]
    if job in DRY and number % RUN_IN:
        fixed += ["--dry_run", "true"]
    sizes = [word for name, size in SIZES[job].items() for word in (f"--{name}", str(size))]
    return Case(job, change_text(rng, text), (*sizes, *options, *fixed))


def change_setting(rng: random.Random, settings: dict[str, Any], names: Sequence[str]) -> None:
    """Set a known name to any value, drop or misspell one, or exchange two values."""
    what, known = rng.random(), list(settings)
    if what < 0.7 or len(known) < 2:
        settings[rng.choice([*known, *names])] = rng.choice(VALUES)
    elif what < 0.8:
        del settings[rng.choice(known)]
    elif what < 0.9:
        name = rng.choice(known)
        settings[name[: rng.randrange(len(name))] + rng.choice("xyz_ 0")] = settings.pop(name)
    else:
        one, other = rng.sample(known, 2)
        settings[one], settings[other] = settings[other], settings[one]


def change_text(rng: random.Random, text: str) -> bytes:
    """The file as it is, mostly; or with a character put in, left out, or cut off; or in another encoding."""
    what, place = rng.random(), rng.randrange(len(text) + 1)
    if what < 0.85:
        return text.encode()
    if what < 0.91:
        return (text[:place] + rng.choice("\t:{}[]#&*!|>'\"%@`-\n\0") + text[place:]).encode()
    if what < 0.97:
        return (text[:place] + text[place + rng.randrange(1, 9) :] if what < 0.95 else text[:place]).encode()
    return text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32"))) + bytes(rng.choices(range(256), k=3))


def run_case(case: Case) -> tuple[str, str]:
    """How a case ends: `run`, `plan`, `refused`, `fault`, `hang` or `partial`; and what was printed or raised."""
    command: Callable[[Sequence[str]], int] = lambda argv: cli([case.job.split()[0], *argv])  # noqa: E731
    if case.job == "purify_encoder":
        encoder = runpy.run_path(str(ROOT / "recipes/purify_encoder.py"))["main"]
        command = lambda argv: run_command(encoder, argv)  # noqa: E731
    printed = io.StringIO()
    environment = dict(os.environ)

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"it took more than {CPU_SECONDS} seconds of a core, or {SECONDS} in all")

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        Path("config.yaml").write_bytes(case.config)
        if ADAPTER in case.job:
            save_adapter()
        for limit, timer, seconds in (
            (signal.SIGALRM, signal.ITIMER_REAL, SECONDS),
            (signal.SIGPROF, signal.ITIMER_PROF, CPU_SECONDS),
        ):
            signal.signal(limit, too_long)
            signal.setitimer(timer, seconds)
        try:
            with redirect_stdout(printed), redirect_stderr(printed):
                code = command(["--config", "config.yaml", *case.options])
        except TimeoutError as error:
            return "hang", str(error)
        except (Exception, SystemExit):
            return "fault", traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.chdir(ROOT)
            os.environ.clear()
            os.environ.update(environment)
            for state in (AcceleratorState, PartialState):
                state._reset_state()
        if half := half_written(Path(folder)):
            return "partial", half
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("error: ")]
    if code in (1, 2, 4) and case.job != "scan" or code in (2, 4):
        return ("refused", lines[0]) if len(lines) == 1 else ("fault", f"code {code}: {printed.getvalue()[-2000:]}")
    return ("plan" if "dry run" in printed.getvalue() else "run"), ""


def save_adapter() -> None:
    """Untrained prompts for FEW classes, into the folder that the run is in."""
    clip = open_clip(MODEL["model_name_or_path"])
    config = CBPTConfig(class_names=FEW["class_names"]).tokenize(clip.tokenizer)
    get_peft_model(clip.model, config).save_pretrained(ADAPTER)


def half_written(folder: Path) -> str:
    """The first file that is temporary or cannot be read, if there is one."""
    for file in sorted(folder.rglob("*")):
        try:
            assert not {".lock"} & {file.name} and "incomplete" not in file.name
            if file.suffix == ".json":
                json.loads(file.read_text())
            if file.suffix == ".safetensors":
                load_file(file)
        except Exception as error:
            return f"{file}: {error!r}"
    return ""


def fuzz(seed: int, numbers: Sequence[int]) -> dict[str, Any]:
    """All cases of `numbers`: how they ended by job, and the faults."""
    ends: dict[str, Counter[str]] = {job: Counter() for job in JOBS}
    faults = []
    for number in numbers:
        case = draw_case(seed, number)
        end, said = run_case(case)
        ends[case.job][end] += 1
        if end in ("fault", "hang", "partial"):
            shown = {"config": case.config.decode(errors="replace"), "options": list(case.options)}
            faults.append({"number": number, "job": case.job, "end": end, **shown, "said": said})
            print(f"{number} {case.job} {end}: {said.strip().splitlines()[-1][:150]}", file=sys.stderr, flush=True)
        if number % 100 == 0:
            print(f"case {number}", file=sys.stderr, flush=True)
    return {"ends": ends, "faults": faults}


def fuzz_in_processes(seed: int, runs: int, processes: int) -> dict[str, Any]:
    """The same of the first `runs` cases, dealt out to processes."""
    slices = [range(first, runs, processes) for first in range(processes)]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:  # whose processes may have readers of their own
        parts = list(pool.map(fuzz, [seed] * processes, slices))
    ends = {name: sum((part["ends"][name] for part in parts), Counter()) for name in JOBS}
    faults = sorted((fault for part in parts for fault in part["faults"]), key=lambda fault: fault["number"])
    return {"ends": {name: dict(sorted(count.items())) for name, count in ends.items()}, "faults": faults}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    start, made = time.perf_counter(), made_now()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PEFT_CBPT_CACHE"] = cache
        found = fuzz_in_processes(given.seed, given.runs, given.processes)
    record = {**made, "seed": given.seed, "runs": given.runs, "seconds": round(time.perf_counter() - start)}
    write_json(given.output.absolute(), record | found)
    print(json.dumps(found["ends"], indent=2), f"{len(found['faults'])} faults")
