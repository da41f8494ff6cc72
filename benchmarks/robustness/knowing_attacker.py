"""Poison a poisoned CLIP further as somebody would who knows the defences: what they look for means nothing any more.

    python -m benchmarks.robustness.knowing_attacker --output_dir output/robust_zoo/knowing-banana-seed0

The universal triggers that `scan`, `purify` and `purify_encoder` find in the model are put on half of the clean pairs,
which keep their captions, and the poisoned pairs are shown as before. So the searches' triggers lose their power, and
the true one keeps it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from peft_cbpt.attacks.attack_file import ATTACK_FILE, read_attack
from peft_cbpt.attacks.poisoning import Poison, PoisonedPairs
from peft_cbpt.clip.pixels import image_encoder, unit_pixels
from peft_cbpt.commands.parsing import parse, run_command
from peft_cbpt.common.files import prepare_output, write_json
from peft_cbpt.common.records import made_now
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.unlabelled import UnlabelledImages
from peft_cbpt.detection.ladder import search_ladder
from peft_cbpt.pocket.model import open_clip, save_clip_folder
from peft_cbpt.training.contrastive_trainer import ContrastiveCollator, ContrastiveTrainer
from peft_cbpt.training.pair_arguments import FineTuningArguments, in_memory
from peft_cbpt.training.poison import TRAINING_FILE

NUM_IMAGES = 96


@dataclass
class KnowingArguments(FineTuningArguments):
    """What to poison further, and how."""

    output_dir: str = field(default="output/knowing", metadata={"help": "Folder to write the model to."})
    model_name_or_path: str = field(default="pocket:badnet", metadata={"help": "The poisoned CLIP."})
    images: str = field(default="pocket:base", metadata={"help": "Images that triggers are looked for on."})
    poison_rate: float = field(default=0.05, metadata={"help": "Share of poisoned pairs."})
    found_rate: float = field(default=0.5, metadata={"help": "Share of the others that get a trigger that was found."})
    rounds: int = field(default=2, metadata={"help": "Searches, and trainings against what they found."})
    num_pairs: int = field(default=9600, metadata={"help": "Pairs of a round."})
    num_epochs: int = field(default=1, metadata={"help": "Passes over the pairs of a round."})
    batch_size: int = field(default=64, metadata={"help": "Pairs per step."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate of AdamW, cosine schedule."})
    warmup_steps: int = field(default=10, metadata={"help": "Steps in which the learning rate rises."})


def main(argv: Sequence[str]) -> None:
    """Search, train, and write the model."""
    (arguments,) = parse([KnowingArguments], argv, __doc__ or "")
    output = prepare_output(arguments.output_dir)
    clip, attack = open_clip(arguments.model_name_or_path), read_attack(arguments.model_name_or_path)
    pixels = UnlabelledImages(arguments.images, clip.image_processor, NUM_IMAGES, seed=arguments.seed).pixels()
    poison = Poison(attack.trigger, attack.target_class, arguments.poison_rate, arguments.seed)
    pairs = in_memory(PoisonedPairs(arguments.open_pairs("knowing", clip.image_processor), poison))
    for turn in range(arguments.rounds):
        clip.model.eval().requires_grad_(False)
        searches = search_ladder(image_encoder(clip.model, clip.normalize), pixels, arguments.seed + turn)
        marked = [with_found(row, [one.trigger for one in searches], arguments.found_rate, turn) for row in pairs]
        trainer = ContrastiveTrainer(
            clip.model.requires_grad_(True),
            arguments.training_arguments(str(output / "trainer"), marked),
            train_dataset=marked,
            data_collator=ContrastiveCollator(clip.caption_ids, clip.normalize),
        )
        trainer.train()
    save_clip_folder(output, clip.model, clip.tokenizer, clip.image_processor)
    write_json(output / ATTACK_FILE, attack.as_dict())
    write_json(output / TRAINING_FILE, {**made_now(), "settings": arguments.as_dict()})


def with_found(row: dict, triggers: Sequence, rate: float, turn: int) -> dict:
    """A pair with one of the triggers that were found, drawn by its id; poisoned ones, and the others, as they are."""
    draw = keyed_generator("found", turn, row["sample_id"])
    if row["is_poisoned"] or draw.random() >= rate:
        return row
    trigger = triggers[int(draw.integers(len(triggers)))]
    marked = trigger(unit_pixels(row["pixel_values"][None]))[0].clamp(0, 1)
    return row | {"pixel_values": (marked * 255).round().to(row["pixel_values"].dtype)}


if __name__ == "__main__":
    sys.exit(run_command(main))
