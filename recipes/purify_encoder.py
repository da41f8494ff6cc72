"""Take the backdoor out of a CLIP's image tower, from unlabelled images; writes a plain PEFT LoRA.

    python recipes/purify_encoder.py --config recipes/configs/pocket/purify_encoder.yaml
    accelerate launch recipes/purify_encoder.py --model_name_or_path clip --images folder --output_dir purified

Every setting in `--help` is an option and a line of the YAML file.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel

from peft_cbpt.commands.parsing import DRY_RUN, going_on, parse, run_command
from peft_cbpt.commands.printing import print_skipped
from peft_cbpt.common.files import alone_in, prepare_output, removed_afterwards
from peft_cbpt.common.processes import join_processes
from peft_cbpt.convert.checkpoint_arguments import CheckpointArguments
from peft_cbpt.data.unlabelled import UnlabelledImages
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.scanning import scan
from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
from peft_cbpt.training.encoder_trainer import EncoderPurifier, purify_encoder
from peft_cbpt.training.plan import plan_encoder


@dataclass
class ModelAndImages:
    """What to purify, and with which images."""

    model_name_or_path: str = field(default="pocket:badnet", metadata={"help": "The suspicious CLIP."})
    images: str = field(default="pocket:base", metadata={"help": "Clean images: a folder, a dataset or a Hub id."})
    split: str = field(default="train", metadata={"help": "Of a dataset that has splits."})
    num_images: int | None = field(default=None, metadata={"help": "Use so many images, drawn at random."})
    dry_run: bool = field(default=False, metadata={"help": DRY_RUN})


def main(argv: Sequence[str]) -> None:
    """Purify and save the adapter."""
    chosen, checkpoint, arguments = parse(
        [ModelAndImages, CheckpointArguments, EncoderPurifierArguments], argv, __doc__ or ""
    )
    state = join_processes()
    clip = open_clip(chosen.model_name_or_path, checkpoint=checkpoint)
    images = UnlabelledImages(chosen.images, clip.image_processor, chosen.num_images, split=chosen.split)
    if chosen.dry_run:
        print(plan_encoder(EncoderPurifier(clip.model, arguments, images, clip.normalize)))
        return
    with (
        going_on("to go on from the last checkpoint, run again with --resume_from_checkpoint true"),
        alone_in(prepare_output(arguments.output_dir)) as output,
    ):
        verdict: Any = scan(clip, chosen.images, split=chosen.split, seed=arguments.seed)
        searches, suspected = verdict.searches, verdict.directions
        purified = purify_encoder(clip.model, images, arguments, clip.normalize, searches, suspected)
        if state.is_main_process:
            save(purified, output)
    if state.is_main_process:
        print_skipped("images", [one.as_dict() for one in images.skipped])
        print(arguments.output_dir)


def save(purified: PeftModel, output: Path) -> None:
    """Write the adapter under a temporary name first."""
    with removed_afterwards(output / ".incomplete"):
        purified.save_pretrained(str(output / ".incomplete"))
        for file in sorted((output / ".incomplete").iterdir()):
            os.replace(file, output / file.name)


if __name__ == "__main__":
    sys.exit(run_command(main))
