"""Draw what purification did: one HTML page that can be mailed, and its pictures as PNG files."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import tqdm
from transformers import TrainingArguments

from peft_cbpt.attacks import trigger_from_config
from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.commands.adapters import adapter_folder, load_adapter, load_base, read_json
from peft_cbpt.commands.parsing import folder_first, parse
from peft_cbpt.commands.purify import PurifyArguments, class_features, load_images
from peft_cbpt.commands.results import SCHEMA_VERSION
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output
from peft_cbpt.hub.adapter_folder import RESULTS_FILE
from peft_cbpt.method.inversion import InversionSettings
from peft_cbpt.reports.page import render_page
from peft_cbpt.reports.pictures import PurifiedModel, draw_pictures
from peft_cbpt.reports.style import png_bytes, write_bytes
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.tuner.fingerprint import weights_fingerprint

PAGE_FILE = "report.html"
NEEDED_PACKAGES = {"captum": "captum", "sklearn": "scikit-learn", "jinja2": "jinja2"}
NEEDED_KEYS = (
    "model class_names attacks shots n_test_images before after epochs settings seed date versions base_fingerprint"
).split()


@dataclass
class ReportArguments:
    """Which run to draw, and where its inputs are now."""

    folder: str = field(metadata={"help": "Output folder of purify; may be given as the first word."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder to write to; FOLDER/report by default."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "The base model, if it has moved."})
    dataset_name: str | None = field(default=None, metadata={"help": "The dataset of the shots, if it has moved."})
    test_dataset_name: str | None = field(default=None, metadata={"help": "The test images, if they have moved."})
    class_names_file: str | None = field(default=None, metadata={"help": "Names of the classes, if they have moved."})


def report(argv: Sequence[str]) -> None:
    """Run the command; see docs/reports.md."""
    (arguments,) = parse([ReportArguments], folder_first(argv), __doc__ or "")
    _check_packages()
    folder = adapter_folder(arguments.folder)
    results = read_results(folder)
    output = prepare_output(arguments.output_dir or str(folder / "report"))
    purified = _open(arguments, folder, results)
    pictures = draw_pictures(purified, results)
    for picture in tqdm(pictures, desc="writing", leave=False):
        write_bytes(output / f"{picture.name}.png", png_bytes(picture.figure))
    page = render_page(results, pictures, shown_settings(results["settings"]))
    write_bytes(output / PAGE_FILE, page.encode())
    print(f"{PAGE_FILE} and {len(pictures)} pictures: {output}")


def _check_packages() -> None:
    missing = [package for module, package in NEEDED_PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise InputError(f"reports need {' and '.join(missing)}: pip install 'peft-cbpt[reports]'")


def read_results(folder: Path) -> dict[str, Any]:
    """The content of results.json.

    Raises:
        InputError: if it is missing, of another program, or of another version of this one.
    """
    file = folder / RESULTS_FILE
    if not file.is_file():
        raise InputError(f"{folder} has no {RESULTS_FILE}: give the --output_dir of a run of purify that has ended")
    results = read_json(file)
    version = results.get("schema_version")
    if version is None:
        raise InputError(f"{file} was not written by purify, it has no schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{file} has the schema_version {version}, this version of peft_cbpt reads {SCHEMA_VERSION}: "
            "run purify again"
        )
    if missing := [key for key in NEEDED_KEYS if key not in results]:
        raise InputError(f"{file} is incomplete, it lacks {missing[0]!r}: run purify again")
    return results


def shown_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the method and of the data, without the many of the Trainer and without the output folder."""
    of_trainer = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours = [field.name for kind in (PurifyArguments, CBPTTrainingArguments) for field in dataclasses.fields(kind)]
    kept = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "weight_decay", "seed")
    return {
        name: settings[name]
        for name in ours
        if name in kept or (name not in of_trainer and settings.get(name) is not None)
    }


def _open(arguments: ReportArguments, folder: Path, results: Mapping[str, Any]) -> PurifiedModel:
    """Base, adapter, images and attacks of a run, from the settings it stored."""
    settings = dict(results["settings"])
    for name in ("dataset_name", "test_dataset_name", "class_names_file"):
        settings[name] = getattr(arguments, name) or settings.get(name)
    clip = load_base(folder, arguments.model_name_or_path)
    if weights_fingerprint(clip.model) != results["base_fingerprint"]["after"]:
        raise InputError(
            f"the weights of {arguments.model_name_or_path or results['model']} are not those that were purified: "
            "name the right base model with --model_name_or_path"
        )
    known = {field.name for field in dataclasses.fields(PurifyArguments)}
    run = PurifyArguments(**{name: value for name, value in settings.items() if name in known})
    try:
        shots, test_images, class_names, _ = load_images(run, results["seed"], clip)
    except InputError as error:
        raise InputError(
            f"{error}; if files have moved, name them with --dataset_name, --test_dataset_name and --class_names_file"
        ) from error
    if class_names != results["class_names"] or sorted(shots.dataset["sample_id"]) != sorted(results["shots"]):
        raise InputError(
            f"{run.dataset_name} no longer gives the classes and shots of the run: name the right --dataset_name"
        )
    model = load_adapter(folder, clip).to(PartialState().device)
    return PurifiedModel(
        clip=clip,
        class_names=class_names,
        before=class_features(model, clip, adapter=False),
        after=class_features(model, clip, adapter=True),
        shots=shots,
        test_images=test_images,
        attacks={
            name: Attack(trigger_from_config(attack["trigger"]), attack["target_class"])
            for name, attack in results["attacks"].items()
        },
        inversion=InversionSettings(
            float(settings["norm"]),
            settings["epsilon"],
            settings["inversion_steps"],
            settings["inversion_lr"],
            settings["inversion_step_rule"],
        ),
        positives=settings["positives"],
        seed=results["seed"],
    )
