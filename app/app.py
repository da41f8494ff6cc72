"""A demo: put a trigger on an image, and see what a CLIP makes of it as it was and purified.

Usage:
    python app/app.py                # the pocket world's run that lies beside this file
    python app/app.py out            # any output folder of `peft-cbpt purify`

If the folder has the output of a scan in `scan/`, it is shown too. What has moved since the run is named as for
`peft-cbpt report`: --model_name_or_path, --dataset_name, --test_dataset_name, --class_names_file.
"""

import argparse
import html
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

if find_spec("gradio") is None:
    sys.exit("error: the demo needs gradio: pip install 'peft-cbpt[app]'")

import gradio as gr
import matplotlib
import torch
from PIL import Image
from torch import Tensor

from peft_cbpt.attacks import Trigger, apply_trigger
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.data.decoding import model_pixels, read_image
from peft_cbpt.hub.evidence import figure_rows
from peft_cbpt.hub.opening import adapter_folder
from peft_cbpt.reports.grad_cam import grad_cam
from peft_cbpt.reports.pictures import PurifiedModel, spread
from peft_cbpt.reports.report import open_run, read_run
from peft_cbpt.scanning import PAGE_FILE

SHIPPED = Path(__file__).with_name("pocket")
NO_TRIGGER = "no trigger"
N_SAMPLES, N_CLASSES, SIDE = 8, 4, 240
CSS = """
.gradio-container { max-width: 1240px !important; margin: auto !important; }
#given img, #samples img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
"""
FONT = ["system-ui", "sans-serif"]
LOOK = {"theme": gr.themes.Default(font=FONT, font_mono=FONT), "css": CSS}
"""Fonts of the reader's own system, so that nothing is fetched."""


@dataclass(frozen=True)
class Mark:
    """What may be put on an image: a change of pixels (1, 3, H, W) in [0, 1], and words before the prompts."""

    apply: Callable[[Tensor], Tensor]
    text: str = ""


def marks_of(run: PurifiedModel) -> dict[str, Mark]:
    """No trigger, those that the run was measured on, and one that it found by itself for each class aimed at."""

    def known(trigger: Trigger) -> Callable[[Tensor], Tensor]:
        return lambda pixels: unit_pixels(apply_trigger(trigger, pixels, ["app"]))

    marks = {NO_TRIGGER: Mark(lambda pixels: pixels)}
    for name, attack in run.attacks.items():
        marks[f"{name}: the attacker's, for {attack.target_class}"] = Mark(known(attack.trigger), attack.text_trigger)
    for (label, _), trigger in run.universal_triggers.items():
        marks[f"found without knowing it, for {run.class_names[label]}"] = Mark(trigger)
    return marks


def look(run: PurifiedModel, mark: Mark, image: Image.Image) -> tuple[Any, ...]:
    """What the CLIP sees in an image: the picture, then shares of classes and heat map before, and both after."""
    pixels = mark.apply(unit_pixels(model_pixels(read_image(image, "the image"), run.clip.image_processor)[None]))
    pixels = pixels.to(run.clip.model.device)
    scale = run.clip.model.logit_scale.exp()
    seen: list[Any] = [picture(pixels[0])]
    for encode, prompts in ((run.see_before, run.before), (run.see_after, run.after)):
        with torch.no_grad():
            feature = encode(pixels)
        text = prompts(mark.text).to(pixels.device)
        shares = (scale * feature @ text.T).softmax(1)[0].detach()
        named = shares.argmax()
        heat = grad_cam(encode, run.clip.model.vision_model, pixels, text, named[None])[0]
        best = shares.topk(min(N_CLASSES, len(shares))).indices.tolist()
        seen += [{run.class_names[label]: shares[label].item() for label in best}, picture(pixels[0], heat)]
    return tuple(seen)


def picture(pixels: Tensor, heat: Tensor | None = None) -> Image.Image:
    """Pixels (3, H, W) in [0, 1] for the screen, under a heat map (H, W) if one is given."""
    shown = pixels.permute(1, 2, 0).cpu()
    if heat is not None:
        shown = 0.4 * shown + 0.6 * torch.from_numpy(matplotlib.colormaps["inferno"](heat.cpu().numpy())[..., :3])
    image = Image.fromarray((255 * shown).round().to(torch.uint8).numpy())
    return image.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def samples_of(run: PurifiedModel) -> list[Image.Image]:
    """Test images of classes that no attack aims at, spread over the classes."""
    targets = {attack.target_class for attack in run.attacks.values()}
    labels = run.test_images.dataset["label"]
    rows = [row for row, label in enumerate(labels) if run.class_names[label] not in targets]
    chosen = [run.test_images.dataset[rows[place]] for place in spread(len(rows), N_SAMPLES)]
    return [read_image(row["image"], row["sample_id"]) for row in chosen]


def headline(results: Mapping[str, Any]) -> str:
    """What was purified, and the figures of the run, as Markdown."""
    figures = [f"**{label}** {shares[0]:.1f} → {shares[-1]:.1f}%" for label, shares in figure_rows(results)]
    named = f"{len(results['class_names'])} classes, {results['n_test_images']} test images"
    return f"# {results['model']}, as it was and purified\n{' · '.join(figures)} · {named}"


def scan_page(folder: Path) -> str:
    """The page that `peft-cbpt scan` wrote to a run's `scan` folder, in a frame that may run nothing."""
    file = folder / "scan" / PAGE_FILE
    if not file.is_file():
        return f"No scan lies in {html.escape(str(file.parent))}: write one with <code>peft-cbpt scan</code>."
    page = html.escape(file.read_text(encoding="utf-8"))
    return f'<iframe title="scan" sandbox srcdoc="{page}" style="width: 100%; height: 75vh; border: 0"></iframe>'


def build(run: PurifiedModel, results: Mapping[str, Any], folder: Path) -> gr.Blocks:
    """The page."""
    marks, samples = marks_of(run), samples_of(run)

    def update(image: Image.Image | None, name: str) -> tuple[Any, ...]:
        return look(run, marks[name], image) if image else (None,) * 5

    def picked(event: gr.SelectData) -> Image.Image:
        return samples[event.index]

    with gr.Blocks(title="peft_cbpt") as page:
        gr.Markdown(headline(results))
        with gr.Tab("Try it"), gr.Row():
            with gr.Column(scale=5, min_width=400):
                with gr.Row():
                    given = gr.Image(
                        samples[0],
                        label="Drop an image",
                        type="pil",
                        sources=["upload", "clipboard"],
                        height=SIDE,
                        elem_id="given",
                    )
                    shown = gr.Image(label="What the model is shown", height=SIDE, interactive=False, buttons=[])
                gallery = gr.Gallery(
                    samples,
                    columns=4,
                    height=SIDE + 36,
                    allow_preview=False,
                    show_label=False,
                    buttons=[],
                    elem_id="samples",
                )
                trigger = gr.Radio(list(marks), value=NO_TRIGGER, label="Put a trigger on it", elem_id="trigger")
            answers: list[Any] = []
            for title, name in (("As it was", "before"), ("Purified", "after")):
                with gr.Column(scale=3, min_width=220):
                    answers.append(gr.Label(label=title, elem_id=name))
                    heat = gr.Image(label="Where it looks (Grad-CAM)", height=SIDE, interactive=False, buttons=[])
                    answers.append(heat)
        with gr.Tab("Scan"):
            gr.HTML(scan_page(folder))
        outputs = [shown, *answers]
        gallery.select(picked, None, given)
        for event in (given.change, trigger.change, page.load):
            event(update, [given, trigger], outputs, show_progress="hidden")
    return page


def main(arguments: argparse.Namespace) -> None:
    """Open the run and serve the page."""
    folder = adapter_folder(str(arguments.folder))
    results = read_run(folder)
    moved = {name: getattr(arguments, name) for name in ("dataset_name", "test_dataset_name", "class_names_file")}
    run = open_run(folder, results, arguments.model_name_or_path, **moved)
    build(run, results, folder).launch(**LOOK)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=SHIPPED, help="Output folder of purify.")
    for option in ("model_name_or_path", "dataset_name", "test_dataset_name", "class_names_file"):
        parser.add_argument(f"--{option}", help="If it has moved since the run.")
    main(parser.parse_args())
