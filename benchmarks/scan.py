"""Error rates of `scan`: models are searched once, and the searches are read against many random lists of names.

    python -m benchmarks.scan --models pocket:clean pocket:badnet output/zoo/sig-banana-seed0 --output_dir output/scan
    python -m benchmarks.scan --output_dir output/scan          # what is stored, as a table

A model's searches are kept in NAME.safetensors and not made again; what its lists say is in NAME.json. The target of a
poisoned model is read from its attack.json; a model without one is clean. The models in `LOOKED_AT`, and half of the
others, by a hash of their names, are for choosing constants; figures to report are those of the rest. Words before the
names and searches away from what was found are left out here.
"""

import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from peft_cbpt.attacks.attack_file import ATTACK_FILE, read_attack
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.commands.parsing import parse, run_command
from peft_cbpt.common.files import prepare_output, write_json
from peft_cbpt.common.records import made_now
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.unlabelled import UnlabelledImages
from peft_cbpt.detection.decoys import decoy_names
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.detection.ladder import CLIMBS, Search, search_ladder, sized
from peft_cbpt.detection.reading import Vocabulary, clean_scale, read_all
from peft_cbpt.detection.verdict import weigh
from peft_cbpt.evaluation.measure import encode_in_batches, template_text_features
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.model import open_clip, resolve_model

LOOKED_AT = (
    *("clip-clean", "clip-badnet", "clip-resnet-badnet", "sig-volcano-seed21", "blended-volcano-seed5"),
    *("badclip-banana-seed5", "badnet-palm_tree-seed6", "sig-banana-seed0", "trojvqa-banana-seed0"),
    "wanet-banana-seed0",
)
"""The constants were chosen on these."""
SIZES = (5, 10, 20, 60, 150, 320)


@dataclass
class ScanBenchmarkArguments:
    """Which models, and how many lists."""

    output_dir: str = field(default="output/scan", metadata={"help": "Folder of searches and cells."})
    models: list[str] = field(default_factory=list, metadata={"help": "Folders of models, or pocket:NAME."})
    images: str = field(default="pocket:base", metadata={"help": "Clean images."})
    num_images: int = field(default=96, metadata={"help": "Images to use, at most."})
    lists: int = field(default=100, metadata={"help": "Random lists of names for every model."})
    seed: int = field(default=0, metadata={"help": "Of searches and lists."})


def main(argv: Sequence[str]) -> None:
    """Search what is not searched yet, read all lists, print the table."""
    (arguments,) = parse([ScanBenchmarkArguments], argv, __doc__ or "")
    output = prepare_output(arguments.output_dir)
    for model in arguments.models:
        name = Path(resolve_model(model)).name
        if not (output / f"{name}.safetensors").is_file():
            store_searches(output / f"{name}.safetensors", model, arguments)
    for file in sorted(output.glob("*.safetensors")):
        cell = file.with_suffix(".json")
        if not cell.is_file():
            print(f"reading {file.stem}", file=sys.stderr)
            write_json(cell, read_lists(file, arguments.lists, arguments.seed) | made_now())
    print(render([json.loads(cell.read_text()) for cell in sorted(output.glob("*.json"))]))


def half_of(name: str) -> str:
    """`chosen on` or `held out`: the split that constants may not cross."""
    if name in LOOKED_AT:
        return "chosen on"
    return "held out" if hashlib.blake2b(name.encode()).digest()[0] % 2 else "chosen on"


def store_searches(file: Path, model: str, arguments: ScanBenchmarkArguments) -> None:
    """Search a model and keep all that readings need, as fp16."""
    clip = open_clip(model)
    images = UnlabelledImages(arguments.images, clip.image_processor, arguments.num_images, seed=arguments.seed)
    pixels = images.pixels()
    encode = image_encoder(clip.model.requires_grad_(False), clip.normalize)
    names, words = class_names(), decoy_names(clip.tokenizer)
    kept: dict[str, Tensor] = {
        "names": template_text_features(clip.model, clip.tokenizer, names),
        "words": template_text_features(clip.model, clip.tokenizer, words),
        "clean": encode_in_batches(encode, pixels),
    }
    described = []
    for number, search in enumerate(search_ladder(encode, pixels, arguments.seed)):
        kept |= {f"f{number}": search.features, f"c{number}": search.clean, f"m{number}": search.trigger.mark}
        described.append((search.family, search.number, search.size))
    place = Path(resolve_model(model))
    target = read_attack(str(place)).target_class if (place / ATTACK_FILE).is_file() else ""
    about = {"searches": json.dumps(described), "words": json.dumps(words), "target": target}
    save_file({key: value.half().contiguous() for key, value in kept.items()}, str(file), about)


def load_searches(file: Path) -> tuple[dict[str, Any], list[Search]]:
    """What `store_searches` kept: features and words, and the searches."""
    kinds = {(climb.family, climb.number): climb.kind for climb in CLIMBS}
    with safe_open(str(file), "pt") as kept:
        about = kept.metadata()
        searches = [
            Search(
                family,
                number,
                FoundTrigger(sized(kinds[family, number], size), kept.get_tensor(f"m{place}").float()),
                kept.get_tensor(f"f{place}").float(),
                kept.get_tensor(f"c{place}").float(),
            )
            for place, (family, number, size) in enumerate(json.loads(about["searches"]))
        ]
        features = {key: kept.get_tensor(key).float() for key in ("names", "words", "clean")}
    return features | {"decoys": json.loads(about["words"]), "target": about.get("target", "")}, searches


def read_lists(file: Path, n_lists: int, seed: int) -> dict[str, Any]:
    """The verdict of every random list; those of a poisoned model contain its target."""
    kept, searches = load_searches(file)
    every, target = class_names(), kept["target"]
    lists = []
    for number in range(n_lists):
        size = SIZES[number % len(SIZES)]
        order = keyed_generator("scan lists", seed, number).permutation(len(every)).tolist()[:size]
        if target and every.index(target) not in order:
            order[0] = every.index(target)
        names = [every[place] for place in order]
        decoys = [place for place, word in enumerate(kept["decoys"]) if word not in names]
        features = torch.cat([kept["names"][order], kept["words"][decoys]])
        vocabulary = Vocabulary([*names, *(kept["decoys"][place] for place in decoys)], size, features)
        weighed = weigh(read_all(searches, vocabulary, clean_scale(kept["clean"], features)), vocabulary)
        surest = next(iter([*weighed.findings, *weighed.doubts]), None)
        lists.append(
            {
                "size": size,
                "verdict": weighed.answer,
                "named": weighed.findings[0].name if weighed.findings else None,
                "surest": surest.name if surest else None,
                "false_alarm_rate": surest.false_alarm_rate if surest else weighed.least_rate,
            }
        )
    return {"model": file.stem, "target": target, "half": half_of(file.stem), "seed": seed, "lists": lists}


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95% confidence interval of a share (Wilson)."""
    if not count:
        return 0.0, 1.0
    z = 1.96
    middle, spread = hits + z * z / 2, z * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return (middle - spread) / (count + z * z), (middle + spread) / (count + z * z)


def auroc(poisoned: Sequence[float], clean: Sequence[float]) -> float:
    """The chance that a poisoned one has the smaller false-alarm rate; ties count half."""
    wins = sum((p < c) + (p == c) / 2 for p in poisoned for c in clean)
    return wins / (len(poisoned) * len(clean)) if poisoned and clean else math.nan


def render(cells: Sequence[dict[str, Any]]) -> str:
    """A table of all models, and the error rates of each half with 95% intervals, lists pooled."""
    lines = ["| model | half | target | accused | named first | unsure |", "|---|---|---|---|---|---|"]
    for cell in cells:
        lists, n = cell["lists"], len(cell["lists"])
        accused = sum(one["verdict"] == "backdoored" for one in lists)
        named = sum(one["named"] == cell["target"] for one in lists) if cell["target"] else None
        unsure = sum(one["verdict"] == "unsure" for one in lists)
        told = f"{100 * named / n:.0f}%" if named is not None else ""
        shares = f"{100 * accused / n:.0f}% | {told} | {100 * unsure / n:.0f}%"
        lines.append(f"| {cell['model']} | {cell['half']} | {cell['target']} | {shares} |")
    halves: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        halves[cell["half"]].append(cell)
    for half, own in sorted(halves.items()):
        clean = [one for cell in own if not cell["target"] for one in cell["lists"]]
        poisoned = [(cell["target"], one) for cell in own if cell["target"] for one in cell["lists"]]
        alarms = sum(one["verdict"] == "backdoored" for one in clean)
        named = sum(one["named"] == target for target, one in poisoned)
        area = auroc([one["false_alarm_rate"] for _, one in poisoned], [one["false_alarm_rate"] for one in clean])
        lines.append(f"\n{half}: false alarms {_share(alarms, len(clean))}; target named first ")
        lines[-1] += f"{_share(named, len(poisoned))}; AUROC {area:.3f}"
    return "\n".join(lines)


def _share(hits: int, count: int) -> str:
    low, high = wilson(hits, count)
    return f"{hits} of {count} ({100 * low:.1f} to {100 * high:.1f}%)"


if __name__ == "__main__":
    sys.exit(run_command(main))
