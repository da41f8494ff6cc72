"""Draw what purification did: one HTML page that can be mailed, and its pictures as PNG files."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import tqdm
from peft import PeftModel
from torch import Tensor
from transformers import TrainingArguments

from peft_cbpt.attacks import trigger_from_config
from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output, write_bytes
from peft_cbpt.data.shots import ShotArguments, shots_and_test
from peft_cbpt.detection.found import FoundTrigger, load_triggers
from peft_cbpt.evaluation.classifiers import adapter_encoder, adapter_features, repairs_encoder
from peft_cbpt.evaluation.measure import template_text_features
from peft_cbpt.hub.adapter_folder import RESULTS_FILE, SCHEMA_VERSION, TRIGGERS_FILE, read_json
from peft_cbpt.hub.opening import adapter_folder, load_adapter, load_base
from peft_cbpt.method.inversion import InversionSettings
from peft_cbpt.tuner import CBPTConfig
from peft_cbpt.tuner.fingerprint import weights_fingerprint

PAGE_FILE = "report.html"
READABLE_VERSIONS = (SCHEMA_VERSION - 1, SCHEMA_VERSION)
"""Of results.json; the older one knows prompts on an encoder as it was."""
NEEDED_PACKAGES = {"captum": "captum", "sklearn": "scikit-learn", "jinja2": "jinja2"}
NEEDED_KEYS = (
    "model class_names attacks shots n_test_images before after epochs settings seed date versions base_fingerprint"
).split()
SHOWN_OF_TRAINER = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "weight_decay", "seed")


def draw_report(
    folder: str | Path,
    output_dir: str | Path | None = None,
    *,
    model_name_or_path: str | None = None,
    dataset_name: str | None = None,
    test_dataset_name: str | None = None,
    class_names_file: str | None = None,
) -> tuple[Path, list[str]]:
    """Draw the report of a finished run.

    Args:
        folder: What `purify` wrote.
        output_dir: Where to write; `FOLDER/report` by default.
        model_name_or_path: The base model, if it has moved.
        dataset_name: The images of the shots, if they have moved.
        test_dataset_name: The test images, if they have moved.
        class_names_file: The names of the classes, if they have moved.

    Returns:
        The folder written to, and the names of the pictures.

    Raises:
        InputError: if a package is missing, or what the run was made of cannot be opened as it was.
    """
    if missing := [package for module, package in NEEDED_PACKAGES.items() if find_spec(module) is None]:
        raise InputError(f"reports need {' and '.join(missing)}: pip install 'peft-cbpt[reports]'")
    from peft_cbpt.reports.page import render_page
    from peft_cbpt.reports.pictures import draw_pictures

    adapter = adapter_folder(str(folder))
    results = read_run(adapter)
    output = prepare_output(str(output_dir or adapter / "report"))
    purified = open_run(
        adapter,
        results,
        model_name_or_path,
        dataset_name=dataset_name,
        test_dataset_name=test_dataset_name,
        class_names_file=class_names_file,
    )
    pictures = draw_pictures(purified, results)
    for picture in tqdm(pictures, desc="writing", leave=False):
        write_bytes(output / f"{picture.name}.png", picture.png)
    page = render_page(results, pictures, shown_settings(results["settings"]))
    write_bytes(output / PAGE_FILE, page.encode())
    return output, [picture.name for picture in pictures]


def read_run(folder: Path) -> dict[str, Any]:
    """The `results.json` of a run that has ended.

    Raises:
        InputError: if there is none, or none of this version.
    """
    file = folder / RESULTS_FILE
    if not file.is_file():
        raise InputError(f"{folder} has no {RESULTS_FILE}: give the --output_dir of a run of purify that has ended")
    results = read_json(file)
    version = results.get("schema_version")
    if version is None:
        raise InputError(f"{file} was not written by purify, it has no schema_version")
    if version not in READABLE_VERSIONS:
        raise InputError(
            f"{file} has the schema_version {version}, this version of peft_cbpt reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}: run purify again"
        )
    if missing := [key for key in NEEDED_KEYS if key not in results]:
        raise InputError(f"{file} is incomplete, it lacks {missing[0]!r}: run purify again")
    return results


def shown_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the method and of the data, those of the encoder among them, without the many of the Trainer."""
    of_trainer = {field.name for field in dataclasses.fields(TrainingArguments)} - set(SHOWN_OF_TRAINER)

    def of_method(given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name not in of_trainer and value is not None}

    of_encoder = of_method(settings.get("encoder") or {})
    return of_method({**settings, "encoder": None}) | {f"encoder: {name}": value for name, value in of_encoder.items()}


def open_run(folder: Path, results: Mapping[str, Any], base: str | None = None, **moved: str | None) -> Any:
    """The `pictures.PurifiedModel` of a run: base, adapter, images and attacks, from the settings it stored.

    Args:
        folder: What `purify` wrote.
        results: Its `read_run`.
        base: The base model, if it has moved.
        **moved: `dataset_name`, `test_dataset_name` and `class_names_file`, where they have moved.

    Raises:
        InputError: if what the run was made of cannot be opened as it was.
    """
    from peft_cbpt.reports.pictures import PurifiedModel

    settings = results["settings"] | {name: value for name, value in moved.items() if value}
    clip = load_base(folder, base)
    if weights_fingerprint(clip.model) != results["base_fingerprint"]["after"]:
        raise InputError(
            f"the weights of {base or results['model']} are not those that were purified: "
            "name the right base model with --model_name_or_path"
        )
    arguments = ShotArguments(**{one.name: settings[one.name] for one in dataclasses.fields(ShotArguments)})
    images, test_images = settings["dataset_name"], settings.get("test_dataset_name")
    try:
        data = shots_and_test(images, test_images, arguments, results["seed"], clip.image_processor)
    except InputError as error:
        raise InputError(
            f"{error}; if files have moved, name them with --dataset_name, --test_dataset_name and --class_names_file"
        ) from error
    if data.class_names != results["class_names"] or sorted(data.shots.dataset["sample_id"]) != sorted(
        results["shots"]
    ):
        raise InputError(f"{images} no longer gives the classes and shots of the run: name the right --dataset_name")
    model = load_adapter(folder, clip).to(PartialState().device)
    see_before = see_after = image_encoder(clip.model, clip.normalize)
    if repairs_encoder(model.active_peft_config):
        see_before, see_after = (adapter_encoder(model, clip, adapter=own) for own in (False, True))
    before, after = (_head(model, clip, data.class_names, settings["template"], own) for own in (False, True))
    inversion = None
    if settings.get("dummy_triggers") == "runner_up":
        others = [settings[name] for name in ("epsilon", "inversion_steps", "inversion_lr", "inversion_step_rule")]
        inversion = InversionSettings(float(settings["norm"]), *others)
    return PurifiedModel(
        clip=clip,
        class_names=data.class_names,
        before=before,
        after=after,
        see_before=see_before,
        see_after=see_after,
        shots=data.shots,
        test_images=data.test,
        attacks={
            name: Attack(trigger_from_config(attack["trigger"]), attack["target_class"])
            for name, attack in results["attacks"].items()
        },
        seed=results["seed"],
        inversion=inversion,
        positives=settings.get("positives", "farthest"),
        universal_triggers=_universal_triggers(folder / TRIGGERS_FILE),
    )


def _head(
    model: PeftModel, clip: LoadedCLIP, class_names: list[str], template: str, adapter: bool
) -> Callable[[str], Tensor]:
    """Features of an adapter's prompts after a text trigger, or of the template's; a LoRA has no others."""
    if isinstance(model.active_peft_config, CBPTConfig):
        return adapter_features(model, clip, adapter)

    @cache
    def features(text_trigger: str) -> Tensor:
        return template_text_features(clip.model, clip.tokenizer, class_names, template, text_trigger).cpu()

    return features


def _universal_triggers(file: Path) -> dict[tuple[int, int], FoundTrigger]:
    found = load_triggers(file)[0] if file.is_file() else {}
    return {(int(label), int(number)): one for (label, number), one in ((n.split("/"), t) for n, t in found.items())}
