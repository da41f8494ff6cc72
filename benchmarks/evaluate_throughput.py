"""Time and memory of `peft-cbpt evaluate` on many generated images, against the bare forward passes of the encoder.

    python benchmarks/evaluate_throughput.py                    # 50,000 images
    python benchmarks/evaluate_throughput.py --n_images 2000

Draws pocket pictures into tar archives, measures a fifth of them and then all, in one process with a thread for every
core and in one process for every core, and writes benchmarks/results/evaluate_throughput.json: seconds of wall clock
and of CPU of the whole command, from which those of the fifth are taken to leave its start out, and how the largest
resident memory of a process grew from the fifth to the whole. The bare forward passes use all cores; they are timed
before, between and after the others, and their mean counts, since the speed of a machine drifts.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.pixels import EncodeImage, image_encoder
from peft_cbpt.common.versions import package_versions
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import render_samples, sample_ids
from peft_cbpt.pocket.model import resolve_model

RESULTS = Path(__file__).parent / "results" / "evaluate_throughput.json"
ARCHIVE_SIZE = 5000
MODEL = "pocket:badnet"
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "evaluate_classifiers.py"


def draw(n_images: int, folder: Path) -> Path:
    """Archives of `n_images` pictures of all classes in turn, with the class's name as `cls`."""
    names, folder = class_names(), folder / str(n_images)
    folder.mkdir()
    for start in range(0, n_images, ARCHIVE_SIZE):
        with tarfile.open(folder / f"{start:06}.tar", "w") as tar:
            numbers = range(start, min(start + ARCHIVE_SIZE, n_images))
            for number in numbers:
                name = names[number % len(names)]
                (pixels,) = render_samples(sample_ids("base", "throughput", name, [number]))[0]
                picture = io.BytesIO()
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("cls", name.encode())):
                    info = tarfile.TarInfo(f"{number:09}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def timed(work: Callable[[], None]) -> dict[str, float]:
    """Seconds of wall clock, and of CPU of this process and its children."""
    before = time.perf_counter(), os.times()
    work()
    after = time.perf_counter(), os.times()
    return {"wall": after[0] - before[0], "cpu": sum(after[1][:4]) - sum(before[1][:4])}


@torch.no_grad()
def bare_forward_passes(encode: EncodeImage, n_images: int, batch_size: int) -> None:
    pixels = torch.randint(256, (batch_size, 3, 48, 48), dtype=torch.uint8)
    for start in range(0, n_images, batch_size):
        encode(pixels[: n_images - start].float() / 255)


def evaluate(data: Path, output: Path, batch_size: int, num_processes: int) -> None:
    launch = [sys.executable]
    if num_processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    options = ["--model_name_or_path", MODEL, "--datasets", str(data), "--batch_size", str(batch_size)]
    threads = str((os.cpu_count() or 1) // num_processes)
    subprocess.run(
        [*launch, str(RECIPE), *options, "--output_dir", str(output)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": threads},
    )


def measure(fifth: Path, whole: Path, output: Path, batch_size: int, num_processes: int) -> dict:
    """The two commands, timed, with the largest resident memory of any process so far, of earlier runs too."""
    seconds, peaks = {}, {}
    for name, data in (("fifth", fifth), ("whole", whole)):
        seconds[name] = timed(partial(evaluate, data, output / f"{name}-{num_processes}", batch_size, num_processes))
        peaks[name] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    cell = json.loads((output / f"whole-{num_processes}" / "evaluation.json").read_text())["cells"][0]
    return {
        "num_processes": num_processes,
        "n_counted": cell["n_images"],
        "seconds": seconds,
        "peak_memory_mb": peaks,
    }


def times_bare(seconds: dict[str, dict[str, float]], bare: dict[str, float]) -> dict[str, dict[str, float]]:
    """How often the bare passes would fit in the time, with the command's start and without."""
    rest = {clock: seconds["whole"][clock] - seconds["fifth"][clock] for clock in bare}
    return {
        "whole_command": {clock: seconds["whole"][clock] / bare[clock] for clock in bare},
        "without_start": {clock: rest[clock] / (0.8 * bare[clock]) for clock in bare},
    }


def main(n_images: int, batch_size: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fifth, whole = draw(n_images // 5, folder), draw(n_images, folder)
        clip = load_clip(resolve_model(MODEL))
        encode = image_encoder(clip.model, clip.normalize)
        bare_passes = [timed(lambda: bare_forward_passes(encode, n_images, batch_size))]
        runs = []
        for count in sorted({1, os.cpu_count() or 1}):
            runs.append(measure(fifth, whole, folder, batch_size, count))
            bare_passes.append(timed(lambda: bare_forward_passes(encode, n_images, batch_size)))
    bare = {clock: sum(one[clock] for one in bare_passes) / len(bare_passes) for clock in bare_passes[0]}
    record = {
        "n_images": n_images,
        "batch_size": batch_size,
        "cores": os.cpu_count(),
        "bare_seconds": bare_passes,
        "runs": [run | {"times_bare": times_bare(run["seconds"], bare)} for run in runs],
        "load_average": os.getloadavg()[0],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": package_versions(),
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_images", type=int, default=50_000)
    parser.add_argument("--batch_size", type=int, default=256)
    arguments = parser.parse_args()
    main(arguments.n_images, arguments.batch_size)
