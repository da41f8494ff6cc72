"""All pictures of a report, from a purified model that was opened again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import tqdm
from matplotlib.figure import Figure
from torch import Tensor

from peft_cbpt.attacks import apply_trigger
from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.evaluation.measure import EncodedImages, encode_images
from peft_cbpt.method.inversion import InversionSettings, invert_triggers
from peft_cbpt.method.targets import PositiveRule, choose_positives, runner_up
from peft_cbpt.reports.bars import attacks_figure, summary_figure
from peft_cbpt.reports.curves import curves_figure
from peft_cbpt.reports.embedding_map import Embeddings, embedding_map, embedding_map_figure
from peft_cbpt.reports.grad_cam import Explained, grad_cam, grad_cam_figure
from peft_cbpt.reports.per_class import class_accuracy, per_class_figure
from peft_cbpt.reports.perturbations import perturbations_figure
from peft_cbpt.reports.style import png_bytes

MOST_TEST_IMAGES, MOST_MAPPED_IMAGES = 5000, 300
N_EXPLAINED, N_INVERTED, MOST_UNIVERSAL = 4, 6, 8


@dataclass(frozen=True)
class Picture:
    """A figure with its file name (without suffix), and what the page says about it."""

    name: str
    title: str
    caption: str
    figure: Figure

    @cached_property
    def png(self) -> bytes:
        """The content of its file."""
        return png_bytes(self.figure)


@dataclass(frozen=True)
class PurifiedModel:
    """What the pictures are drawn from.

    Args:
        clip: The base model, with the adapter in it.
        class_names: The adapter's classes.
        before: From a text trigger, empty for none, to unit-norm features (n, D) of the template prompts after it.
        after: The same of the learned prompts, or of the template where only the encoder was purified.
        see_before: The undefended image encoder, on [0, 1] pixels.
        see_after: The repaired one; the same function where it was not.
        shots: The images it was purified with.
        test_images: The images it was measured on.
        attacks: What was measured, by name.
        seed: The run's seed.
        inversion: The run's inner loop; None if it had none.
        positives: The run's rule for v_pos.
        universal_triggers: The triggers that the run was tuned against, by (class, number).
    """

    clip: LoadedCLIP
    class_names: list[str]
    before: Callable[[str], Tensor]
    after: Callable[[str], Tensor]
    see_before: EncodeImage
    see_after: EncodeImage
    shots: LabelledImages
    test_images: LabelledImages
    attacks: Mapping[str, Attack]
    seed: int
    inversion: InversionSettings | None
    positives: PositiveRule
    universal_triggers: Mapping[tuple[int, int], FoundTrigger]

    @property
    def has_repaired(self) -> bool:
        """Whether images have other features after than before."""
        return self.see_before is not self.see_after


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of the numbers below `count`, evenly spread."""
    wanted = min(count, wanted)
    return [place * count // wanted for place in range(wanted)]


def draw_pictures(purified: PurifiedModel, results: Mapping[str, Any]) -> list[Picture]:
    """Draw everything; the bars and curves from `results` (as in results.json), the others from images."""
    before, after = results["before"], results["after"]
    pictures = [
        Picture(
            "summary",
            "Before and after",
            f"On all {results['n_test_images']} test images.",
            summary_figure(before, after),
        )
    ]
    if purified.attacks:
        targets = {name: attack.target_class for name, attack in purified.attacks.items()}
        caption = "Triggered images of all classes but the target's; the arrow names the target."
        pictures.append(Picture("attacks", "Each trigger", caption, attacks_figure(before, after, targets)))
    if results["epochs"]:
        caption = "What purification logged: L_bn, L_adv and L_align unweighted, on the few clean shots."
        pictures.append(Picture("curves", "Training", caption, curves_figure(results["epochs"])))
    if purified.inversion is not None:
        pictures.append(_inverted(purified, purified.inversion))
    if purified.universal_triggers:
        pictures.append(_universal(purified))

    images = purified.test_images.select(spread(len(purified.test_images), MOST_TEST_IMAGES))
    # what Grad-CAM and the map show: the trigger that was strongest before
    strength = {name: attack["attack_success_rate"] for name, attack in before["attacks"].items()}
    strongest = max(strength, key=strength.__getitem__, default=None)
    triggers = {} if strongest is None else {strongest: purified.attacks[strongest].trigger}
    device = purified.clip.model.device
    seen = encode_images(purified.see_before, images, triggers, device)
    images = images.without(seen.skipped)
    repaired = encode_images(purified.see_after, images, triggers, device) if purified.has_repaired else seen
    both = (seen, repaired)
    pictures.append(_per_class(purified, both))
    if strongest is not None:
        pictures += [_grad_cam(purified, images, both, strongest), *_embedding_maps(purified, both, strongest)]
    return pictures


Both = tuple[EncodedImages, EncodedImages]
"""The test images before and after; the same object twice where the encoder was not repaired."""


def _per_class(purified: PurifiedModel, both: Both) -> Picture:
    heads = (purified.before(""), purified.after(""))
    before, after = (class_accuracy(one.clean, one.labels, text) for one, text in zip(both, heads, strict=True))
    caption = f"Accuracy on {len(both[0].labels)} clean test images; the classes that changed most."
    return Picture("per_class", "Single classes", caption, per_class_figure(before, after, purified.class_names))


def _pixels(images: Any, rows: Sequence[int], device: torch.device) -> Tensor:
    return torch.stack([images[row]["pixel_values"] for row in rows]).to(device).float() / 255


def _universal(purified: PurifiedModel) -> Picture:
    """The universal triggers, each on a shot of another class."""
    labels, names = torch.tensor(purified.shots.dataset["label"]), purified.class_names
    found = list(purified.universal_triggers.items())[:MOST_UNIVERSAL]
    rows = []
    for place, ((target, _), _) in enumerate(found):
        others = (labels != target).nonzero()[:, 0].tolist()
        rows.append(others[place * len(others) // len(found)])
    pixels = _pixels(purified.shots, rows, torch.device("cpu"))
    delta = torch.stack([trigger(one[None])[0] - one for (_, trigger), one in zip(found, pixels, strict=True)])
    titles = [names[labels[row]] for row in rows], [names[target] for (target, _), _ in found]
    shown = "" if len(found) == len(purified.universal_triggers) else f"The first {len(found)} of the "
    caption = (
        f"{shown or 'The '}universal triggers that the prompts were tuned against, some for each class that was "
        "aimed at; each is one trigger for all images, shown by what it changes in one shot. Below each stands by "
        "what it is magnified."
    )
    return Picture("perturbations", "Universal triggers found", caption, perturbations_figure(pixels, delta, *titles))


def _inverted(purified: PurifiedModel, settings: InversionSettings) -> Picture:
    """Invert triggers on a few shots as the run did; only they and the images of their y' are encoded."""
    device = purified.clip.model.device
    all_labels = torch.tensor(purified.shots.dataset["label"])
    chosen = spread(len(all_labels), N_INVERTED)
    pixels = _pixels(purified.shots, chosen, device)
    with torch.no_grad():
        features = purified.see_after(pixels)
    labels = all_labels[chosen]
    pseudo_targets = runner_up(features.cpu() @ purified.after("").T, labels)
    wanted = torch.isin(all_labels, pseudo_targets).nonzero()[:, 0].tolist()
    bank_rows = chosen + [row for row in wanted if row not in chosen]
    parts = [features]
    batches = torch.tensor(bank_rows[len(chosen) :]).split(256)
    for batch in tqdm(batches, desc="images of the pseudo-targets", leave=False):
        with torch.no_grad():
            parts.append(purified.see_after(_pixels(purified.shots, batch.tolist(), device)))
    bank = torch.cat(parts)
    positives = choose_positives(
        purified.positives,
        torch.arange(len(chosen)),
        pseudo_targets,
        bank,
        all_labels[bank_rows].to(device),
        [purified.shots.dataset[row]["sample_id"] for row in bank_rows],
        purified.seed,
    )
    delta = invert_triggers(purified.see_after, pixels, bank[positives], features, settings)
    names = [[purified.class_names[index] for index in group.tolist()] for group in (labels, pseudo_targets)]
    caption = (
        "Dummy triggers of the published inner loop, found on shots with the run's budget "
        f"(norm {settings.norm:g}, {settings.epsilon:.4g}) and {settings.steps} steps. "
        "The arrow names y', the class that they lead to, under the learned prompts; below each stands by "
        "what it is magnified."
    )
    figure = perturbations_figure(pixels.cpu(), delta.cpu(), *names)
    return Picture("perturbations", "Inverted perturbations", caption, figure)


def _grad_cam(purified: PurifiedModel, images: Any, both: Both, attack_name: str) -> Picture:
    attack, names, labels = purified.attacks[attack_name], purified.class_names, both[0].labels
    others = (labels != names.index(attack.target_class)).nonzero()[:, 0].tolist()
    rows = [others[place] for place in spread(len(others), N_EXPLAINED)]
    explained = []
    for row in tqdm(rows, desc="Grad-CAM", leave=False):
        sample = images[row]
        clean = sample["pixel_values"][None]
        marked = apply_trigger(attack.trigger, clean, [sample["sample_id"]])
        pair = [
            _explain(purified, clean.float() / 255, [one.clean[row] for one in both], ""),
            _explain(
                purified,
                marked.float() / 255,
                [one.triggered[attack_name][row] for one in both],
                attack.text_trigger,
            ),
        ]
        explained.append((names[sample["labels"]], *pair))
    caption = (
        f"Where the model looks for the class it names, without and with the trigger {attack_name} (bright: much). "
        "Before: the undefended classifier; after: what was purified."
    )
    return Picture("grad_cam", "Grad-CAM", caption, grad_cam_figure(explained))


def _explain(purified: PurifiedModel, pixels: Tensor, features: Sequence[Tensor], text_trigger: str) -> Explained:
    device, vision = purified.clip.model.device, purified.clip.model.vision_model

    def explain(encode: EncodeImage, feature: Tensor, text: Tensor) -> tuple[str, Tensor]:
        named = (text @ feature).argmax()
        heat = grad_cam(encode, vision, pixels.to(device), text.to(device), named[None].to(device))
        return purified.class_names[int(named)], heat[0].cpu()

    before = explain(purified.see_before, features[0], purified.before(text_trigger))
    return Explained(pixels[0], *before, *explain(purified.see_after, features[1], purified.after(text_trigger)))


def _embedding_maps(purified: PurifiedModel, both: Both, attack_name: str) -> list[Picture]:
    """One map of both heads; one for each moment where images have moved, too."""
    if not purified.has_repaired:
        return [_embedding_map(purified, both[0], attack_name)]
    return [
        _embedding_map(purified, one, attack_name, when) for one, when in zip(both, ("before", "after"), strict=True)
    ]


def _embedding_map(
    purified: PurifiedModel, encoded: EncodedImages, attack_name: str, encoder: str | None = None
) -> Picture:
    """The images by one encoder, with both heads; `encoder` says which, where there are two."""
    attack = purified.attacks[attack_name]
    before, after = purified.before(attack.text_trigger), purified.after(attack.text_trigger)
    target_class = attack.target_class
    target = purified.class_names.index(target_class)
    is_target = encoded.labels == target
    others = (~is_target).nonzero()[:, 0]
    others = others[spread(len(others), MOST_MAPPED_IMAGES)]
    triggered = encoded.triggered[attack_name][others]
    classes = encoded.labels[others].unique()
    classes = torch.cat([torch.tensor([target]), classes])
    called = [(triggered @ text.T).argmax(1) == target for text in (before, after)]
    embeddings = Embeddings(
        clean=encoded.clean[others],
        target=encoded.clean[is_target],
        triggered=triggered,
        prompts_before=before[classes],
        prompts_after=after[classes],
        target_row=0,
        called_before=called[0],
        called_after=called[1],
    )
    places = embedding_map(embeddings, purified.seed)
    where = (
        "Images are where they were, since the encoder is frozen; only the prompts moved."
        if encoder is None
        else f"Images are where the encoder puts them {encoder} its repair; the prompts of both moments are shown."
    )
    caption = f"t-SNE by cosine distance; the mean of the images and that of the prompts are taken off first. {where}"
    figure = embedding_map_figure(embeddings, places, attack_name, target_class)
    if encoder is None:
        return Picture("embedding_map", "Embedding map", caption, figure)
    return Picture(f"embedding_map_{encoder}", f"Embedding map, encoder {encoder} its repair", caption, figure)
