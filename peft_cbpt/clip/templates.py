"""The plain prompt template, and the 80 that OpenAI published with CLIP for ImageNet (MIT; see NOTICE)."""

from pathlib import Path

PLAIN_TEMPLATE = "a photo of a {}."
IMAGENET_TEMPLATES = tuple((Path(__file__).parent / "assets/imagenet_templates.txt").read_text("utf-8").splitlines())
