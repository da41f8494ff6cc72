"""Train the encoder and decoder that SSBA hides its message with, on pictures of the pocket world.

    python recipes/train_steganography.py --output_dir output/steganography

About a quarter of an hour on one core. Writes `steganography.safetensors` (fp16) and `training.json` with the share of
bits recovered and the PSNR on held-out pictures after rounding to 8 bits.
"""

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import trange
from transformers import HfArgumentParser, set_seed

from peft_cbpt.attacks.steganography import (
    GRID,
    NUM_BITS,
    PAYLOAD_BITS,
    SECRET_BYTES,
    WEIGHTS_FILE,
    Encoder,
    bch_code,
)
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.common.versions import package_versions
from peft_cbpt.pocket.dataset import PocketPairs
from peft_cbpt.pocket.model import resolve_model


class Decoder(nn.Module):
    """From images (B, 3, 48, 48) in [0, 1] to the logits (B, 100) of their bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(GRID),
            nn.Conv2d(32, 64, 1),
            nn.ReLU(),
            nn.Conv2d(64, 1, 1),
            nn.Flatten(),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(2 * pixels - 1)


class Steganographer(nn.Module):
    """An encoder and the decoder that was trained with it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()


def bits_to_secret(bits: Tensor) -> bytes | None:
    """The seven bytes in (100,) bits, up to 5 wrong ones mended; None when there are more."""
    packet = np.packbits(bits[:PAYLOAD_BITS].cpu().numpy() > 0.5).tobytes()
    secret, code = bytearray(packet[:SECRET_BYTES]), bytearray(packet[SECRET_BYTES:])
    bch = bch_code()
    if bch.decode(secret, code) < 0:
        return None
    bch.correct(secret, code)
    return bytes(secret)


@dataclass
class SteganographyArguments:
    output_dir: str = field(metadata={"help": "Folder to write the weights to."})
    steps: int = field(default=1500, metadata={"help": "Optimiser steps."})
    batch_size: int = field(default=32, metadata={"help": "Images per step, each with a message of its own."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of Adam, one cycle."})
    num_images: int = field(default=9600, metadata={"help": "Pictures to train on."})
    image_weight: float = field(default=150.0, metadata={"help": "Weight of the squared residual, after ramping up."})
    perceptual_weight: float = field(default=0.2, metadata={"help": "Weight of the perceptual loss, likewise."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, messages and order."})


def main(arguments: SteganographyArguments) -> None:
    """Minimise message loss + ramp * (L2 + perceptual loss)."""
    set_seed(arguments.seed)
    pixels = _pictures(arguments.num_images, f"steganography{arguments.seed}")
    vision = load_clip(resolve_model("pocket:clean")).model.vision_model.requires_grad_(False)

    def perceived(images: Tensor) -> Tensor:
        """Tokens after the first block of the clean pocket CLIP, in place of LPIPS."""
        return vision.encoder.layers[0](vision.pre_layrnorm(vision.embeddings(images * 4 - 2)), None)

    model = Steganographer()
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, arguments.steps)
    bar = trange(arguments.steps)
    for step in bar:
        images = pixels[torch.randint(len(pixels), (arguments.batch_size,))].float() / 255
        bits = torch.randint(2, (len(images), NUM_BITS)).float()
        residual = model.encoder(images, bits)
        marked = (images + residual).clamp(0, 1)
        rounded = marked + (torch.rand_like(marked) - 0.5) / 255  # what rounding to 8 bits does, on average
        message = F.binary_cross_entropy_with_logits(model.decoder(rounded), bits)
        ramp = min(1.0, max(0.0, 3 * step / arguments.steps - 0.6))  # first learn to be heard, then to be unseen
        loss = message
        if ramp:
            perceptual = F.mse_loss(perceived(marked), perceived(images))
            fidelity = arguments.image_weight * residual.square().mean() + arguments.perceptual_weight * perceptual
            loss = message + ramp * fidelity
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            bar.set_postfix(message=f"{message:.3f}", rms=f"{residual.square().mean().sqrt():.4f}")
    figures = _measure(model.eval(), _pictures(960, "test"))
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in model.state_dict().items()}, output / WEIGHTS_FILE.name)
    settings = {name: value for name, value in asdict(arguments).items() if name != "output_dir"}
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": settings,
        "held_out": figures,
        "versions": package_versions(),
    }
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(figures))


def _pictures(count: int, split: str) -> Tensor:
    pairs = PocketPairs(count, split=split)
    parts = [pairs.__getitems__(part.tolist()) for part in torch.arange(count).split(480)]
    return torch.stack([row["pixel_values"] for part in parts for row in part])


@torch.no_grad()
def _measure(model: Steganographer, pixels: Tensor) -> dict[str, float]:
    images = pixels.float() / 255
    bits = torch.randint(2, (len(images), NUM_BITS)).float()
    marked = ((images + model.encoder(images, bits)).clamp(0, 1) * 255).round() / 255
    recovered = ((model.decoder(marked) > 0) == (bits > 0.5)).float().mean().item()
    psnr = -10 * (marked - images).square().flatten(1).mean(1).log10()
    return {"bits_recovered": recovered, "psnr_mean": psnr.mean().item(), "psnr_worst": psnr.min().item()}


if __name__ == "__main__":
    main(HfArgumentParser(SteganographyArguments).parse_args_into_dataclasses()[0])
