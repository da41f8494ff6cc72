"""The default of purification, today's and the paper's loop on the RN50 shape, from stages that are timed in one run.

    python -m benchmarks.speed_default            # writes benchmarks/results/speed_default.json
    python -m benchmarks.speed_default --quick    # tiny, prints only

Stages are in seconds: one image through the tower without and with a gradient to its pixels, a pass of the text tower
with its step, one solution on text features, and the stages of `benchmarks/straightforward.py`. Jobs are `counts` of
them, the search's as `--dry_run` counts it, with two rounds and one suspect that three kinds of triggers show.
"""

import argparse
import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import straightforward
from benchmarks.speed_shape import TEXT_CLASSES_STRAIGHTFORWARD, plain_step
from benchmarks.speed_shapes import attach_prompts, build_clip
from benchmarks.speed_timing import BATCH, BUDGET, EPOCHS, MEMORY_GB, SHOTS, STEPS, WARMUP, our_step, seconds_of
from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder, prefer_channels_last
from peft_cbpt.common.ascent import input_gradient
from peft_cbpt.common.records import made_now, peak_memory_bytes
from peft_cbpt.detection.ladder import AGAIN, ladder_passes
from peft_cbpt.detection.rounds import NUM_IMAGES
from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.method.losses import ObjectiveWeights
from peft_cbpt.training.class_shares import SharedClassEncoder
from peft_cbpt.training.context_fit import PASSES_AN_EPOCH, ContextFit, fit_optimizer
from peft_cbpt.training.text_feature_solver import (
    ANCHORS,
    OuterProblem,
    Perturbed,
    held_out_folds,
    num_epochs,
    solve_on,
)
from peft_cbpt.training.universal_features import trigger_passes
from peft_cbpt.training.universal_settings import UniversalSettings

RESULT = Path(__file__).parent / "results" / "speed_default.json"
TIMED_STEPS = 2
"""Of the straightforward inversion's ten."""
MARKED = UniversalSettings.perturbed_share * UniversalSettings.universal_share
"""Of the images, those that are encoded under a universal trigger in an epoch."""


def random_problem(n: int, width: int) -> OuterProblem:
    """Random features in the numbers of a job with `n` classes."""
    labels = torch.arange(n).repeat_interleave(SHOTS)
    rows = torch.randperm(len(labels))[: int(UniversalSettings.perturbed_share * len(labels))]
    place = torch.full_like(labels, -1).index_copy(0, rows, torch.arange(len(rows)))
    features = F.normalize(torch.randn(len(labels) + len(rows) + n, width), dim=1)
    clean, marked, start = features.split([len(labels), len(rows), n])
    epochs = [Perturbed(place, marked, torch.zeros(len(rows), dtype=torch.int64))] * num_epochs(len(labels))
    return OuterProblem(FeatureBank(clean, labels, []), epochs, start, 100.0, ObjectiveWeights())


def fit_pass(model, problem: OuterProblem) -> Callable[[], None]:
    """A pass of the text tower over all classes, with its step."""
    fit = ContextFit(problem, problem.start.flip(0))
    encode = SharedClassEncoder(model, 0, torch.device("cpu"), MEMORY_GB)
    fit.begin(lambda classes: problem.start, [])
    optimizer = fit_optimizer(model.parameters(), model.get_base_model().text_model.embeddings.token_embedding.weight)

    def one() -> None:
        optimizer.zero_grad()
        fit.loss(lambda classes: encode(model, classes), 0).backward()
        optimizer.step()

    return one


def counts(n: int) -> dict[str, dict[str, float]]:
    """How many of each stage the jobs have, with `n` classes."""
    images = SHOTS * n
    steps = math.ceil(images / BATCH)
    passes = ladder_passes(NUM_IMAGES) + ladder_passes(NUM_IMAGES, AGAIN) + trigger_passes(images)
    folds = len(held_out_folds(torch.arange(n).repeat_interleave(SHOTS), 0))
    epochs = num_epochs(images)

    def default(marked_epochs: int, **others: float) -> dict[str, float]:
        encoded = images * (1 + MARKED * marked_epochs) + passes.forward
        return {"image": encoded, "image with gradient": passes.gradient, **others}

    return {
        "features": default(
            epochs,
            **{"fit pass": 20 * PASSES_AN_EPOCH, "solution": (1 + folds * len(ANCHORS)) * (1 - 1 / (4 * folds))},
        ),
        "prompts": default(EPOCHS - WARMUP, **{"outer step": EPOCHS * steps}),
        "straightforward": {
            "straightforward text step": EPOCHS * steps,
            "straightforward batch": (2 * EPOCHS - WARMUP) * steps,
            "straightforward inversion": (EPOCHS - WARMUP) * steps,
        },
    }


def measure(quick: bool) -> dict:
    """Time the stages and multiply out."""
    clip = build_clip("rn50", small=quick)
    side, width, batch = clip.vision_model.config.image_size, clip.config.projection_dim, 2 if quick else 16
    images = torch.rand(batch, 3, side, side)
    goal = F.normalize(torch.randn(batch, width), dim=1)
    plain = straightforward.Settings(steps=TIMED_STEPS, step_size=BUDGET.lr, epsilon=BUDGET.epsilon, sign=False)
    with torch.no_grad():
        plain_batch = seconds_of(lambda: straightforward.encode_image(clip, images), 1) * BATCH / batch
    inversion = seconds_of(lambda: straightforward.invert(clip, images, goal, -goal, plain), 1) * BATCH / batch
    prefer_channels_last(clip.vision_model)
    encoder = image_encoder(clip, PixelNormalizer())
    with torch.no_grad():
        image = seconds_of(lambda: encoder(images), 1) / batch
    gradient = seconds_of(lambda: input_gradient(lambda it: encoder(it).sum(), images), 1) / batch
    seconds = {
        "image": image,
        "image with gradient": gradient,
        "straightforward batch": plain_batch,
        "straightforward inversion": inversion * STEPS / TIMED_STEPS,
    }
    jobs = {}
    for n in (4, 8) if quick else (100, 1000):
        model = attach_prompts(clip, n)
        problem = random_problem(n, width)
        few = min(n, TEXT_CLASSES_STRAIGHTFORWARD)
        own = seconds | {
            "outer step": seconds_of(our_step(model, n, width), 1),
            "fit pass": seconds_of(fit_pass(model, problem), 1),
            "solution": seconds_of(partial(solve_on, problem, torch.arange(SHOTS * n), 10.0, 0), 1),
            "straightforward text step": seconds_of(plain_step(clip, model, n), 1) * n / few,
        }
        model.unload()
        total = {name: sum(own[stage] * count for stage, count in job.items()) for name, job in counts(n).items()}
        jobs[n] = {"seconds_of_stages": own, "counts": counts(n), "seconds_extrapolated": total}
        jobs[n] |= {
            f"times_faster_than_{name}": total[name] / total["features"] for name in ("prompts", "straightforward")
        }
    return {"shape": "rn50", "shots": SHOTS, "jobs": jobs, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    load = os.getloadavg()[0]
    record = measure(quick) | {"load_average_before": load, "cores": os.cpu_count()} | made_now()
    record["peak_memory_bytes"] = peak_memory_bytes(torch.device("cpu"))
    text = json.dumps(record, indent=2)
    print(text)
    if not quick:
        RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
