"""Train the clean pocket CLIP on captioned pictures of all classes, and measure its zero-shot accuracy.

    accelerate launch recipes/pretrain_pocket.py --output_dir output/clip-clean

About half an hour on 2 cores; a GPU is used when there is one. Writes fp16 weights, tokenizer, image processor
and `training.json` with the seed, the settings and the held-out accuracy.
"""

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    HfArgumentParser,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    TrainingArguments,
    set_seed,
)

from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder
from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetModel, CLIPResNetVisionConfig
from peft_cbpt.clip.templates import IMAGENET_TEMPLATES
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.versions import package_versions
from peft_cbpt.evaluation.measure import accuracy, encode_in_batches, template_text_features
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import PocketPairs, render_samples, sample_ids
from peft_cbpt.pocket.model import save_clip_folder
from peft_cbpt.pocket.render import BACKGROUND_COLOURS, IMAGE_SIZE
from peft_cbpt.pocket.tokenizer import train_tokenizer
from peft_cbpt.training.contrastive_trainer import ContrastiveCollator, ContrastiveTrainer
from peft_cbpt.tuner.families import caption_ids

VOCABULARY_SIZE = 2000
PROJECTION_DIM = 128
ARCHITECTURES = ("vit", "resnet", "siglip")
SIGLIP_PLACES = 24
"""Every caption is filled up to so many tokens; the longest have 18."""


def _corpus() -> Iterable[str]:
    names = class_names()
    yield from (template.format(" ") for template in IMAGENET_TEMPLATES)
    yield from (f"{name} on a {colour} background." for name in names for colour in BACKGROUND_COLOURS)


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges cover the words of the pocket captions; other words fall back to bytes."""
    return train_tokenizer(_corpus(), VOCABULARY_SIZE)


def build_siglip(tokenizer: CLIPTokenizer) -> SiglipModel:
    """An untrained pocket SigLIP with larger patches; scale and bias start where SigLIP's do."""
    text = SiglipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=SIGLIP_PLACES,
        projection_size=PROJECTION_DIM,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = SiglipVisionConfig(
        hidden_size=PROJECTION_DIM,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=12,
    )
    model = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.logit_scale.data.fill_(math.log(10))
    model.logit_bias.data.fill_(-10)
    return model


def build_model(tokenizer: CLIPTokenizer, architecture: str = "vit") -> CLIPModel | SiglipModel:
    """An untrained pocket CLIP with a `vit` or a `resnet` image tower, or a `siglip`; CLIP's text tower keeps its 77
    positions.

    Raises:
        InputError: for another architecture.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"there is no pocket architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}")
    if architecture == "siglip":
        return build_siglip(tokenizer)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=PROJECTION_DIM,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    if architecture == "resnet":
        resnet = CLIPResNetVisionConfig(
            depths=[1, 1, 1, 1],
            width=12,
            num_attention_heads=6,
            image_size=IMAGE_SIZE,
            projection_dim=PROJECTION_DIM,
            strides=[1, 2, 2, 1],
        )
        return CLIPResNetModel(
            CLIPResNetConfig(text_config=text.to_dict(), vision_config=resnet.to_dict(), projection_dim=PROJECTION_DIM)
        )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        projection_dim=PROJECTION_DIM,
        hidden_act="gelu",
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=PROJECTION_DIM)
    )


def build_image_processor(architecture: str = "vit") -> CLIPImageProcessorPil | SiglipImageProcessorPil:
    """Resize to the pocket resolution; normalise as CLIP or SigLIP do."""
    if architecture == "siglip":
        return SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


@dataclass
class PretrainArguments:
    output_dir: str = field(metadata={"help": "Folder to write the model to."})
    architecture: str = field(
        default="vit", metadata={"help": "Image tower, or SigLIP.", "choices": list(ARCHITECTURES)}
    )
    num_classes: int | None = field(default=None, metadata={"help": "Learn the first so many classes only."})
    steps: int = field(default=2000, metadata={"help": "Optimiser steps."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Peak learning rate of AdamW, cosine schedule."})
    batch_size: int = field(default=320, metadata={"help": "Pairs per step; 320 shows every class once."})
    test_images_per_class: int = field(default=20, metadata={"help": "Held-out images per class."})
    bf16: bool = field(default=False, metadata={"help": "Train under bfloat16 autocast."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and data."})


def main(arguments: PretrainArguments) -> None:
    set_seed(arguments.seed)
    output = Path(arguments.output_dir)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, arguments.architecture)
    image_processor = build_image_processor(arguments.architecture)
    normalize = PixelNormalizer(tuple(image_processor.image_mean), tuple(image_processor.image_std))
    names = class_names()[: arguments.num_classes]
    pairs = PocketPairs(arguments.steps * arguments.batch_size, split=f"pretrain{arguments.seed}", class_names=names)
    trainer = ContrastiveTrainer(
        model,
        TrainingArguments(
            output_dir=str(output / "trainer"),
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            weight_decay=0.1,
            adam_beta2=0.98,
            lr_scheduler_type="cosine",
            warmup_steps=arguments.steps // 15,
            max_grad_norm=1.0,
            bf16=arguments.bf16,
            logging_steps=50,
            save_strategy="steps",
            save_steps=500,
            save_total_limit=1,
            dataloader_num_workers=1,
            remove_unused_columns=False,
            report_to="none",
            seed=arguments.seed,
        ),
        train_dataset=pairs,
        data_collator=ContrastiveCollator(partial(caption_ids, model, tokenizer), normalize),
        keep_order=True,
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=any(output.glob("trainer/checkpoint-*")))
    seconds = time.perf_counter() - start

    model = trainer.accelerator.unwrap_model(trainer.model).cpu().eval()
    text = template_text_features(model, tokenizer, names)
    top1 = {}
    for domain in ("base", "v2", "sketch", "rendition", "adversarial"):
        ids = [i for name in names for i in sample_ids(domain, "test", name, range(arguments.test_images_per_class))]
        labels = torch.arange(len(names)).repeat_interleave(arguments.test_images_per_class)
        features = encode_in_batches(image_encoder(model, normalize), render_samples(ids)[0])
        top1[domain] = accuracy(features, labels, text.cpu())
    if trainer.is_world_process_zero():
        save_clip_folder(output, model, tokenizer, image_processor)
        settings = {name: value for name, value in vars(arguments).items() if name != "output_dir"}
        record = settings | {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "train_seconds": round(seconds),
            "zero_shot_top1": top1,
            "n_classes": len(names),
            "versions": package_versions(),
        }
        (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        print(json.dumps({"zero_shot_top1": top1, "train_seconds": round(seconds)}))


if __name__ == "__main__":
    main(HfArgumentParser(PretrainArguments).parse_args_into_dataclasses()[0])
