"""Take the backdoor out of a CLIP's image tower, from unlabelled images; writes a plain PEFT LoRA.

    python recipes/purify_encoder.py --config recipes/configs/pocket/purify_encoder.yaml
    accelerate launch recipes/purify_encoder.py --model_name_or_path clip --images folder --output_dir purified

Every setting in `--help` is an option and a line of the YAML file.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from peft_cbpt.commands.parsing import parse, run_command
from peft_cbpt.common.processes import join_processes
from peft_cbpt.data.unlabelled import UnlabelledImages
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
from peft_cbpt.training.encoder_trainer import purify_encoder


@dataclass
class ModelAndImages:
    """What to purify, and with which images."""

    model_name_or_path: str = field(default="pocket:badnet", metadata={"help": "The suspicious CLIP."})
    images: str = field(default="pocket:base", metadata={"help": "Clean images: a folder, a dataset or a Hub id."})
    split: str = field(default="train", metadata={"help": "Of a dataset that has splits."})
    num_images: int | None = field(default=None, metadata={"help": "Use so many images, drawn at random."})


def main(argv: Sequence[str]) -> None:
    """Purify and save the adapter."""
    chosen, arguments = parse([ModelAndImages, EncoderPurifierArguments], argv, __doc__ or "")
    state = join_processes()
    clip = open_clip(chosen.model_name_or_path)
    images = UnlabelledImages(chosen.images, clip.image_processor, chosen.split, chosen.num_images)
    purified = purify_encoder(clip.model, images, arguments, clip.normalize)
    if state.is_main_process:
        purified.save_pretrained(arguments.output_dir)
        print(arguments.output_dir)


if __name__ == "__main__":
    sys.exit(run_command(main))
