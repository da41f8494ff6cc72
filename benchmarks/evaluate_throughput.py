"""Time and memory of `peft-cbpt evaluate` on many generated images, against the bare forward passes of the encoder.

    python benchmarks/evaluate_throughput.py                    # 50,000 images
    python benchmarks/evaluate_throughput.py --n_images 2000

Draws pocket pictures into tar archives, measures a fifth of them and then all, and writes
benchmarks/results/evaluate_throughput.json: seconds of wall clock and of this process's CPU, and how the largest
resident memory grew from the fifth to the whole.
"""

import argparse
import io
import json
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from peft_cbpt.cli import main as peft_cbpt
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.pixels import EncodeImage, image_encoder
from peft_cbpt.clip.versions import package_versions
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import render_samples, sample_ids
from peft_cbpt.pocket.model import resolve_model

RESULTS = Path(__file__).parent / "results" / "evaluate_throughput.json"
ARCHIVE_SIZE = 5000
MODEL = "pocket:badnet"
CLOCKS = ("wall", "cpu")


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
    """Seconds of wall clock and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


@torch.no_grad()
def bare_forward_passes(encode: EncodeImage, n_images: int, batch_size: int) -> None:
    pixels = torch.randint(256, (batch_size, 3, 48, 48), dtype=torch.uint8)
    for start in range(0, n_images, batch_size):
        encode(pixels[: n_images - start].float() / 255)


def evaluate(data: Path, output: str, batch_size: int, num_workers: int) -> None:
    options = ["--model_name_or_path", MODEL, "--datasets", str(data), "--batch_size", str(batch_size)]
    options += ["--num_workers", str(num_workers)]
    if code := peft_cbpt(["evaluate", *options, "--output_dir", output]):
        sys.exit(code)


def main(n_images: int, batch_size: int, num_workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fifth, whole = draw(n_images // 5, Path(folder)), draw(n_images, Path(folder))
        peaks = []
        seconds = {}
        for name, data in (("fifth", fifth), ("whole", whole)):
            seconds[name] = timed(lambda: evaluate(data, f"{folder}/out-{name}", batch_size, num_workers))  # noqa: B023
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        cell = json.loads(Path(f"{folder}/out-whole/evaluation.json").read_text())["cells"][0]
    clip = load_clip(resolve_model(MODEL))
    encode = image_encoder(clip.model, clip.normalize)
    seconds["bare"] = timed(lambda: bare_forward_passes(encode, n_images, batch_size))
    record = {
        "n_images": n_images,
        "n_counted": cell["n_images"],
        "batch_size": batch_size,
        "num_workers": num_workers,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "seconds": seconds,
        "times_bare_forward": {clock: seconds["whole"][clock] / seconds["bare"][clock] for clock in CLOCKS},
        "times_bare_forward_without_startup": {
            clock: (seconds["whole"][clock] - seconds["fifth"][clock]) / (0.8 * seconds["bare"][clock])
            for clock in CLOCKS
        },
        "peak_memory_mb": {"fifth": peaks[0], "whole": peaks[1]},
        "versions": package_versions(),
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_images", type=int, default=50_000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--num_workers", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.n_images, arguments.batch_size, arguments.num_workers)
