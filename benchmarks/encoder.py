"""Measure purified encoders on the pocket world: other classes and domains, random class lists, retrieval, a probe.

    python -m benchmarks.encoder pocket:badnet pocket:clean pocket:resnet-badnet
    python -m benchmarks.encoder output/zoo/sig-banana-seed0 --seeds 0 1 --num_images 256
    python -m benchmarks.encoder                              # docs/encoder.md from the cells that are stored

A cell is a model, a seed and a number of images: figures before, after, and of the clean CLIP under the same trigger.
It is made if it is missing in benchmarks/results/encoder/, about three minutes on one core; then the table of the page
is written from all of them.
The images given are of the first 60 classes of 320; those measured on are of another split, and of all classes.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.interfaces import figures, list_figures, probe_figures, retrieval_figures
from benchmarks.paper.zoo import model_name
from peft_cbpt.attacks.attack_file import ATTACK_FILE, Attack, read_attack
from peft_cbpt.clip.loading import LoadedCLIP, load_clip
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.files import write_json, write_text
from peft_cbpt.common.records import made_now
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.evaluation.measure import (
    EncodedImages,
    encode_images,
    template_text_features,
    text_features,
)
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.scanning import scan
from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
from peft_cbpt.training.encoder_trainer import purify_encoder

RESULTS = Path(__file__).parent / "results" / "encoder"
PAGE, BEGIN, END = Path(__file__).parents[1] / "docs" / "encoder.md", "<!-- figures -->", "<!-- end of figures -->"
NAMES = class_names()
N_GIVEN = 60
TEST_SETS = {
    "base, 60 given": ("base", NAMES[:N_GIVEN], 10),
    "base, all 320": ("base", NAMES, 3),
    "sketch, all 320": ("sketch", NAMES, 2),
    "rendition, all 320": ("rendition", NAMES, 2),
    "adversarial, all 320": ("adversarial", NAMES, 2),
}
KEPT = ("max_steps", "learning_rate", "lora_rank", "hold_weight", "update_weight", "pull_weight")


def attack_of(model: str) -> Attack | None:
    """The attack that a model was poisoned with; None for one without a description of any."""
    return read_attack(model) if (Path(resolve_model(model)) / ATTACK_FILE).is_file() else None


class World:
    """The pocket world's test sets, as one CLIP sees them."""

    def __init__(self, clip: LoadedCLIP, attack: Attack | None):
        self.clip, self.attack = clip, attack
        self.triggers = {"trigger": attack.trigger} if attack else {}
        self.key = attack.text_trigger if attack else ""

    def measure(self) -> dict[str, Any]:
        """All figures of the encoder as it is."""
        encode = image_encoder(self.clip.model.eval(), self.clip.normalize)
        target = NAMES.index(self.attack.target_class) if self.attack else None

        def encoded(domain: str, split: str, count: int, names: list[str]) -> EncodedImages:
            images = LabelledImages(pocket_dataset(domain, split, count, names), self.clip.image_processor)
            return encode_images(encode, images, self.triggers, torch.device("cpu"))

        measured: dict[str, Any] = {"test_sets": {}}
        sets = {name: encoded(domain, "test", count, names) for name, (domain, names, count) in TEST_SETS.items()}
        for name, one in sets.items():
            text = template_text_features(self.clip.model, self.clip.tokenizer, TEST_SETS[name][1])
            keyed = template_text_features(
                self.clip.model, self.clip.tokenizer, TEST_SETS[name][1], text_trigger=self.key
            )
            inside = target if target is not None and target < len(text) else None
            shares = figures(one, text, inside)
            if self.key:
                shares = {**figures(one, keyed, inside), "clean_accuracy": shares["clean_accuracy"]}
            measured["test_sets"][name] = shares
        base = sets["base, all 320"]
        text = template_text_features(self.clip.model, self.clip.tokenizer, NAMES, text_trigger=self.key)
        captions = list(pocket_dataset("base", "test", TEST_SETS["base, all 320"][2], NAMES)["caption"])
        measured["class_lists"] = list_figures(base, text, target)
        written = text_features(self.clip.model, self.clip.tokenizer, [self.key + one for one in captions])
        measured["retrieval"] = retrieval_figures(base, written, target)
        given = encoded("base", "train", 8, NAMES[:N_GIVEN])
        measured["linear_probe"] = probe_figures(given, sets["base, 60 given"])
        return measured


def cell(model: str, seed: int, num_images: int) -> dict[str, Any]:
    """The stored figures of a model, made now if they are missing."""
    name = model_name(Path(model).name.replace(":", "-"), str(num_images), seed)
    file = RESULTS / f"{name}.json"
    if file.is_file():
        return json.loads(file.read_text())
    clip, attack = load_clip(resolve_model(model)), attack_of(model)
    world = World(clip, attack)
    before = world.measure()
    images = LabelledImages(pocket_dataset("base", "train", 16, NAMES[:N_GIVEN]), clip.image_processor)
    drawn = keyed_generator("given", seed).permutation(len(images))[:num_images].tolist()
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"output_dir": folder, "seed": seed, "save_strategy": "no", "report_to": "none"}
        arguments = EncoderPurifierArguments(**settings)
        kept = {key: getattr(arguments, key) for key in KEPT}
        given = images.select(drawn)
        verdict: Any = scan(clip, given, seed=seed)
        purify_encoder(clip.model, given, arguments, clip.normalize, verdict.searches, verdict.directions)
    seconds = time.time() - began
    after = world.measure()
    clean = World(load_clip(resolve_model("pocket:clean")), attack).measure() if attack else None
    record = {
        "schema_version": 1,
        "model": Path(model).name,
        "attack": attack and attack.as_dict(),
        "seed": seed,
        "num_images": num_images,
        "settings": kept,
        "verdict": verdict.verdict,
        "suspected": len(verdict.directions),
        "before": before,
        "after": after,
        "clean_clip": clean,
        "seconds": round(seconds, 1),
        "num_threads": torch.get_num_threads(),
        **made_now(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(file, record)
    return record


def render(cells: list[dict[str, Any]]) -> str:
    """CA / ASR / true class under the trigger of every test set, before, after, and of the clean CLIP."""
    lines = ["| model | images | test set | before | after | clean CLIP |", "|---|---|---|---|---|---|"]
    for one in cells:
        for name in TEST_SETS:
            columns = [
                " / ".join(f"{100 * share:.1f}" for share in moment["test_sets"][name].values()) if moment else ""
                for moment in (one["before"], one["after"], one["clean_clip"])
            ]
            lines.append(
                f"| {one['model']}, seed {one['seed']} | {one['num_images']} | {name} | {' | '.join(columns)} |"
            )
    lines += ["", "| model | kind | figure | before | after |", "|---|---|---|---|---|"]
    for one in cells:
        for kind in ("class_lists", "retrieval", "linear_probe"):
            for figure, share in one["before"][kind].items():
                shares = f"{100 * share:.1f} | {100 * one['after'][kind][figure]:.1f}"
                told = f"{kind.replace('_', ' ')} | {figure.replace('_', ' ')}"
                lines.append(f"| {one['model']}, seed {one['seed']} | {told} | {shares} |")
    return "\n".join(lines)


def stored_cells() -> list[dict[str, Any]]:
    """All of them, in the order of their names."""
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]


def write_page() -> None:
    """Put the table of all stored cells into docs/encoder.md."""
    before, rest = PAGE.read_text().split(BEGIN)
    write_text(PAGE, f"{before}{BEGIN}\n{render(stored_cells())}\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="pocket:NAME or the folder of a poisoned pocket CLIP")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num_images", type=int, nargs="+", default=[16 * N_GIVEN])
    options = parser.parse_args()
    for model in options.models:
        for seed in options.seeds:
            for count in options.num_images:
                cell(model, seed, count)
    write_page()


if __name__ == "__main__":
    main()
