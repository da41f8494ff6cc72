"""What the trainers' jobs will cost; `features.plan` times them."""

import math
from typing import Any

from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.detection.found import DRAWN
from peft_cbpt.detection.ladder import AGAIN, ladder_passes
from peft_cbpt.detection.rounds import NUM_IMAGES
from peft_cbpt.detection.suspects import MOST_CANDIDATES
from peft_cbpt.features.plan import Passes, Plan, make_plan
from peft_cbpt.training.cbpt_trainer import CBPTTrainer
from peft_cbpt.training.context_fit import PASSES_AN_EPOCH
from peft_cbpt.training.encoder_trainer import TRIGGERS_A_STEP, EncoderPurifier
from peft_cbpt.training.memory import image_batch_size
from peft_cbpt.training.samples import load_pixels
from peft_cbpt.training.text_feature_solver import num_epochs
from peft_cbpt.training.trigger_pool import climbs_of
from peft_cbpt.training.universal_features import trigger_passes

INVERSIONS_AN_IMAGE = 2
"""Of the published inner loop, about: most images keep the runner-up of the first epoch."""


def plan_tuning(trainer: CBPTTrainer, n_test_images: int, n_triggers: int) -> Plan:
    """The whole of `purify`: shots, search, prompts, and test images clean and with triggers."""
    model: Any = trainer.model
    images: Any = trainer.images
    args, n_shots = trainer.args, len(images)
    model.to(args.device).eval()
    warmup = 0 if args.solves_features else args.warmup_epochs
    epochs, purified = math.ceil(args.num_train_epochs), math.ceil(args.num_train_epochs - warmup)
    passes = Passes(n_shots + n_test_images * (1 + n_triggers))
    if purified > 0 and args.dummy_triggers == "runner_up":
        inverted = n_shots * min(purified, INVERSIONS_AN_IMAGE)
        passes += Passes(inverted, inverted * args.inversion_steps)
    elif purified > 0:
        drawn = num_epochs(n_shots) if args.solves_features else purified
        marked = math.ceil(drawn * n_shots * args.perturbed_share * args.universal_share)
        searched = min(NUM_IMAGES, n_shots)
        passes += ladder_passes(searched) + ladder_passes(searched, AGAIN) + Passes(marked)
        for _ in range(MOST_CANDIDATES):
            passes += trigger_passes(n_shots)
    base = model.get_base_model()
    encode = image_encoder(base, trainer.normalize)
    image = load_pixels(images, [0]).to(args.device)
    at_once = image_batch_size(encode, image, base, args.inversion_batch_size, args.activation_memory_gb)
    pixels = load_pixels(images, range(min(at_once, n_shots))).to(args.device)
    steps_an_epoch = (
        PASSES_AN_EPOCH
        if args.solves_features
        else math.ceil(n_shots / (args.train_batch_size * args.world_size * args.gradient_accumulation_steps))
    )
    steps = args.max_steps if args.max_steps > 0 else epochs * steps_an_epoch
    counts = {"shots": n_shots, "test images": n_test_images, "triggers to measure": n_triggers}
    return make_plan(counts, passes, encode, pixels, steps, lambda: trainer.encode_classes(model).sum().backward())


def plan_encoder(trainer: EncoderPurifier) -> Plan:
    """All of `purify_encoder`."""
    model: Any = trainer.model
    args, n_images = trainer.args, len(trainer.images)
    model.to(args.device).eval()
    batch = args.train_batch_size * args.gradient_accumulation_steps
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * n_images / batch)
    anew = steps // args.search_every * args.search_images
    passes = ladder_passes(min(NUM_IMAGES, n_images), climbs_of(args.kinds))
    passes += Passes((2 + DRAWN) * anew + steps * batch, anew * args.search_steps + 2 * steps * batch)
    pixels = trainer.load(range(min(batch, n_images)))
    counts = {"images for the encoder": n_images, "triggers a step of its training": TRIGGERS_A_STEP}
    return make_plan(counts, passes, trainer.encode, pixels, steps)
