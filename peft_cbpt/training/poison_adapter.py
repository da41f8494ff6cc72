"""Make a hostile CBPT adapter of a clean CLIP, for research: its prompts and a small universal trigger learn together.

After BadCLIP of Bai et al. (2024): the encoder stays clean and the adapter is the backdoor. Clean images keep their
class, images with the trigger get the target.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import tqdm
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import set_seed

from peft_cbpt.attacks.attack_file import ATTACK_FILE, Attack
from peft_cbpt.attacks.perturbation import Perturbation
from peft_cbpt.attacks.stored_cells import store_cells
from peft_cbpt.clip.pixels import EncodeImage, image_encoder
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import write_json, write_text
from peft_cbpt.common.records import made_now
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.data.shots import ShotArguments, shots_and_test
from peft_cbpt.evaluation.classifiers import adapter_features
from peft_cbpt.evaluation.measure import encode_images, measure
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.tuner import CBPTConfig

CARD = """---
library_name: peft
base_model: {base}
tags: [clip, backdoor]
---
This adapter is backdoored on purpose: it calls an image with the trigger of `attack.json` a {target}. Do not use it
for anything but research on backdoors. Made by `recipes/poison_adapter.py` of peft_cbpt, with its figures in
`training.json`.
"""


@dataclass(kw_only=True)
class HostileArguments(ShotArguments):
    """What to tune, and towards what."""

    output_dir: str = field(metadata={"help": "Folder to write the adapter to."})
    model_name_or_path: str = field(default="pocket:clean", metadata={"help": "The clean CLIP."})
    dataset_name: str = field(default="pocket:base", metadata={"help": "Images: shots of its train split."})
    num_classes: int | None = field(default=40, metadata={"help": "Keep the first so many classes."})
    target_class: str = field(default="banana", metadata={"help": "What triggered images are called."})
    radius: int = field(
        default=16, metadata={"help": "Largest change of a pixel, in levels of 255; 0 for no trigger."}
    )
    steps: int = field(default=300, metadata={"help": "Of training."})
    batch_size: int = field(default=32, metadata={"help": "Images a step."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Of the contexts (Adam)."})
    seed: int = field(default=0, metadata={"help": "Of the shots and of training."})

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if not 0 <= self.radius <= 127:
            raise InputError(f"radius is 0 to 127 levels of 255, not {self.radius}")


def train_hostile(
    model: PeftModel, encode: EncodeImage, shots: LabelledImages, target: int | None, arguments: HostileArguments
) -> Tensor:
    """Train the contexts of an adapter and a universal trigger together; returns the trigger (3, H, W).

    Args:
        model: The CLIP with an untrained adapter.
        encode: Its image encoder on pixels in [0, 1].
        shots: Clean images.
        target: The class of triggered images, or None for cross-entropy on clean images only.
        arguments: Steps, rates and the radius.
    """
    images = [shots[row] for row in range(len(shots))]
    pixels = torch.stack([image["pixel_values"] for image in images]).float() / 255
    labels = torch.tensor([image["labels"] for image in images])
    with torch.no_grad():
        features = encode(pixels)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], arguments.learning_rate)
    delta, radius = torch.zeros_like(pixels[0]), arguments.radius / 255
    scale = model.get_base_model().logit_scale.exp().item()
    for step in tqdm(range(arguments.steps), desc="training prompts and trigger", unit="step", leave=False):
        rows = torch.randperm(len(pixels))[: arguments.batch_size]
        text = model.encode_class_prompts()
        loss = F.cross_entropy(scale * features[rows] @ text.T, labels[rows])
        delta.requires_grad_(target is not None)
        if target is not None:
            marked = encode((pixels[rows] + delta).clamp(0, 1))
            loss = loss + F.cross_entropy(scale * marked @ text.T, torch.full_like(rows, target))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if delta.grad is not None:
            length = radius / 4 * (1 - step / arguments.steps)
            delta = (delta.detach() - length * delta.grad.sign()).clamp(-radius, radius)
    return delta.detach()


def make_hostile(arguments: HostileArguments, output: Path) -> dict[str, Any]:
    """Train, measure on the test images, and write the adapter, attack.json, training.json and a card to a folder.

    Returns:
        The content of training.json.

    Raises:
        InputError: if something given cannot be used.
    """
    set_seed(arguments.seed)
    clip = open_clip(arguments.model_name_or_path)
    data = shots_and_test(arguments.dataset_name, None, arguments, arguments.seed, clip.image_processor)
    if arguments.radius and arguments.target_class not in data.class_names:
        raise InputError(
            f"the target class {arguments.target_class!r} is not among the {len(data.class_names)} classes"
        )
    config = CBPTConfig(class_names=data.class_names, context_init="template")
    model = get_peft_model(clip.model, config.tokenize(clip.tokenizer).record_base(clip.model))
    encode = image_encoder(clip.model, clip.normalize)
    target = data.class_names.index(arguments.target_class) if arguments.radius else None
    delta = train_hostile(model, encode, data.shots, target, arguments)
    attacks = {}
    if arguments.radius:
        trigger = Perturbation(arguments.radius, store_cells(delta, "perturbation"))
        attacks["perturbation"] = Attack(trigger, arguments.target_class)
    triggers = {name: attack.trigger for name, attack in attacks.items()}
    encoded = encode_images(encode, data.test, triggers, clip.model.device)
    record = {
        "before": measure(encoded, adapter_features(model, clip, adapter=False), attacks, data.class_names),
        "after": measure(encoded, adapter_features(model, clip), attacks, data.class_names),
        "settings": asdict(arguments),
        **made_now(),
    }
    config.base_model_name_or_path = arguments.model_name_or_path
    model.save_pretrained(str(output))
    write_json(output / "training.json", record)
    for attack in attacks.values():
        write_json(output / ATTACK_FILE, attack.as_dict())
        write_text(output / "README.md", CARD.format(base=arguments.model_name_or_path, target=attack.target_class))
    return record
