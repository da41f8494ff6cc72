"""Is this CLIP backdoored? `scan` searches for universal triggers and weighs them against the model's own null."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import EncodeImage, image_encoder, in_batches, prefer_channels_last
from peft_cbpt.clip.templates import PLAIN_TEMPLATE
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output, write_json, write_text
from peft_cbpt.common.records import Stopwatch, made_now, peak_memory_bytes
from peft_cbpt.convert.checkpoint_arguments import NOTHING_GIVEN, CheckpointArguments
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.data.shots import few_labelled
from peft_cbpt.data.unlabelled import AnyImages, UnlabelledImages
from peft_cbpt.detection.adapter_search import Excess, adapter_passes, search_adapter
from peft_cbpt.detection.adapter_verdict import excess_record, weigh_adapter
from peft_cbpt.detection.decoys import decoy_words
from peft_cbpt.detection.heads import Heads
from peft_cbpt.detection.ladder import AGAIN, JUDGED_IMAGES, SEARCH_IMAGES, Search, ladder_passes
from peft_cbpt.detection.reading import Reading, Vocabulary, clean_scale, read_all
from peft_cbpt.detection.record import finding_record, key_record, scan_settings, search_record
from peft_cbpt.detection.rounds import NUM_IMAGES, WORDS, Searched, read_searches, search_rounds
from peft_cbpt.detection.suspects import Suspicion, suspicion_from
from peft_cbpt.detection.text_keys import NAMES, KeyCandidates, KeyReading
from peft_cbpt.detection.verdict import Answer, Finding, Weighed
from peft_cbpt.evaluation.adapted import Adapted, open_adapted
from peft_cbpt.evaluation.measure import text_features
from peft_cbpt.evaluation.reading import warn_of_reading
from peft_cbpt.evaluation.vocabulary import make_vocabulary
from peft_cbpt.features.plan import Passes, Plan, make_plan
from peft_cbpt.hub.sharing import shareable
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.reports.scan_page import FoundPicture, render_scan_page
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.memory import image_batch_size

SCAN_FILE, PAGE_FILE = "scan.json", "scan.html"
SCHEMA_VERSION = 1
ACTIVATION_MEMORY_GB = CBPTTrainingArguments.activation_memory_gb
SHOWN_IMAGES, SHOWN_KEYS = 6, 5


@dataclass(frozen=True)
class Verdict:
    """What a scan says.

    Args:
        weighed: Findings, and those that are too weak to be one.
        readings: Of all searches.
        results: The content of `scan.json`.
        vocabulary: The user's names, if they gave any, and decoys.
    """

    weighed: Weighed
    readings: list[Reading]
    results: dict[str, Any]
    vocabulary: Vocabulary

    @property
    def verdict(self) -> Answer:
        """`clean`, `backdoored` or `unsure`."""
        return self.weighed.answer

    @property
    def findings(self) -> list[Finding]:
        """What triggers lead to, the surest first."""
        return self.weighed.findings

    @property
    def doubts(self) -> list[Finding]:
        """The same of what is too weak to be a finding; none of them is an accusation."""
        return self.weighed.doubts

    @property
    def searches(self) -> list[Search]:
        """What was read."""
        return [one.search for one in self.readings]

    @property
    def directions(self) -> list[Tensor]:
        """Where triggers move images to (D,): of all that is as rare as a finding, whatever it is called."""
        return [one.best.search.shift for one in self.weighed.rare]

    @property
    def suspicion(self) -> Suspicion:
        """What `purify` aims dummy triggers at, as indices into the user's names."""
        return suspicion_from(self.weighed, self.readings, self.vocabulary)


def scan(
    model: str | LoadedCLIP | CLIPModel,
    images: AnyImages,
    class_names: Sequence[str] | None = None,
    *,
    adapter: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: CLIPImageProcessorPil | None = None,
    checkpoint: CheckpointArguments | None = None,
    num_images: int = NUM_IMAGES,
    split: str = "train",
    image_column: str = "image",
    template: str = PLAIN_TEMPLATE,
    seed: int = 0,
    output_dir: str | None = None,
    dry_run: bool = False,
) -> Verdict | Plan:
    """Look for a backdoor, with a few clean images; neither labels nor class names are needed.

    Args:
        model: The CLIP: a folder, a Hub id, `pocket:NAME`, or one that is loaded.
        images: Clean images: a folder, a dataset, pixels in [0, 1], PIL images.
        class_names: What a finding may be called; without them it is called by the nearest words.
        adapter: Folder or Hub id of a PEFT adapter. One of weights (LoRA) is scanned as part of the model; of one of
            prompts (CBPT) the verdict tells what it adds to the model, towards the classes that it knows.
        tokenizer: Of a `CLIPModel` that is not where it came from any more.
        image_processor: The same.
        checkpoint: What a file of weights does not tell of itself, such as its activation and pixels.
        num_images: How many images are used, at most.
        split: Of a dataset with splits.
        image_column: Of a table.
        template: Prompt of names and words, with `{}`.
        seed: Of the choice of images and of all searches.
        output_dir: Where `scan.json`, the triggers as pictures and `scan.html` are written, if anywhere.
        dry_run: Open and check everything, tell what the scan will cost, and stop; nothing is written.

    Raises:
        InputError: if the model, the adapter or the images cannot be had, or class names are given that the adapter's
            own stand in the way of.
    """
    names = list(class_names or [])
    if len(set(names)) < len(names):
        raise InputError("a class name is given twice: leave one of them out")
    output = prepare_output(output_dir) if output_dir and not dry_run else None
    stopwatch = Stopwatch()
    with stopwatch("load"):
        clip = open_clip(model, tokenizer, image_processor, checkpoint)
        adapted = open_adapted(adapter, clip) if adapter else Adapted(clip)
        if adapted.heads and names:
            raise InputError(f"the adapter {adapter} has class names of its own: leave class_names out")
        clip = adapted.clip
        few = UnlabelledImages(
            images,
            clip.image_processor,
            num_images,
            split=split,
            image_column=image_column,
            class_names=names or None,
            seed=seed,
        )
        if len(few) < 2:
            raise InputError(f"a scan needs at least 2 images that can be read, it has {len(few)}: give some more")
        pixels = few.pixels().to(clip.model.device)
        if (labelled := few_labelled(images, names, split, image_column, clip.image_processor)) is not None:
            warn_of_reading(clip, labelled, labelled.dataset.features["label"].names, template)
    if dry_run:
        return _plan(adapted, pixels)
    if adapted.heads:
        with stopwatch("search"):
            verdict = _scan_heads(adapted, adapted.heads, pixels, seed)
    else:
        with stopwatch("search"):
            searched = search_model(clip, pixels, template, seed)
        with stopwatch("read"):
            verdict = read_names(clip, searched, names, template, seed)
    record = {
        "settings": {
            **scan_settings(template, seed, len(pixels)),
            "adapter": adapter,
            "checkpoint": (checkpoint or NOTHING_GIVEN).given() or None,
        },
        "seconds": stopwatch.seconds,
        "peak_memory_bytes": peak_memory_bytes(clip.model.device),
        **made_now(),
    }
    results = shareable(verdict.results | record)
    if output is not None:
        write_json(output / SCAN_FILE, results)
        pictures = [
            FoundPicture(_title(one), one.best.search.trigger, pixels[:SHOWN_IMAGES].cpu())
            for one in [*verdict.findings, *verdict.doubts]
            if one.kind != WORDS
        ]
        write_text(output / PAGE_FILE, render_scan_page(results, pictures, output))
    return replace(verdict, results=results)


def _plan(adapted: Adapted, pixels: Tensor) -> Plan:
    """A search, and one again away from what was found; or that against the heads of an adapter."""
    clip = adapted.clip
    passes = ladder_passes(len(pixels)) + ladder_passes(len(pixels), AGAIN)
    if adapted.heads:
        passes = adapter_passes(len(adapted.class_names), len(pixels))
    encode = adapted.encode or image_encoder(clip.model.requires_grad_(False), clip.normalize)
    at_once = pixels[: min(SEARCH_IMAGES, len(pixels) // 2)]
    return make_plan({"images": len(pixels)}, Passes(len(pixels)) + passes, encode, at_once)


def search_model(clip: LoadedCLIP, pixels: Tensor, template: str = PLAIN_TEMPLATE, seed: int = 0) -> Searched:
    """Search, and search again away from what was found, read against decoys alone, as long as something new is found.

    Args:
        clip: The suspicious CLIP.
        pixels: Clean images (N, 3, H, W) in [0, 1].
        template: Prompt of decoys.
        seed: Of all searches.
    """
    return search_rounds(_encoder(clip, pixels), pixels, make_vocabulary(clip, [], template), seed)


def _encoder(clip: LoadedCLIP, pixels: Tensor, encode: EncodeImage | None = None) -> EncodeImage:
    """The image encoder, or `encode`, which takes no more images at once than memory has room for."""
    prefer_channels_last(clip.model.vision_model)
    clip.model.requires_grad_(False)
    encode = encode or image_encoder(clip.model, clip.normalize)
    at_once = image_batch_size(encode, pixels[:1], clip.model, JUDGED_IMAGES, ACTIVATION_MEMORY_GB)
    return in_batches(encode, at_once)


def _scan_heads(adapted: Adapted, heads: Heads, pixels: Tensor, seed: int) -> Verdict:
    """What an adapter's prompts add to the model: searches against its head and the undefended one."""
    encode = _encoder(adapted.clip, pixels, adapted.encode)
    tried = search_adapter(encode, pixels, heads, seed)
    vocabulary = Vocabulary(adapted.class_names, len(adapted.class_names), heads.adapted)
    with torch.no_grad():
        scale = clean_scale(encode(pixels).cpu(), heads.adapted)
    readings = read_all([one.search for one in tried], vocabulary, scale)
    weighed = weigh_adapter(tried, vocabulary, scale)
    return Verdict(weighed, readings, _results(weighed, readings, vocabulary, tried=tried), vocabulary)


def read_names(
    clip: LoadedCLIP, searched: Searched, class_names: Sequence[str], template: str = PLAIN_TEMPLATE, seed: int = 0
) -> Verdict:
    """Read searches against a list of names: cheap, so that many lists can be read; see `scan`."""
    vocabulary = make_vocabulary(clip, class_names, template)
    read = read_searches(searched, vocabulary, lambda: _key_candidates(clip, vocabulary, template), seed)
    results = _results(read.weighed, read.readings, vocabulary, read.keys)
    return Verdict(read.weighed, read.readings, results, vocabulary)


def look_for_suspects(
    clip: LoadedCLIP, images: LabelledImages, class_names: Sequence[str], seed: int = 0
) -> tuple[Suspicion, list[Search]]:
    """What a scan suspects among some classes, and its searches; all processes call."""
    verdict: Any = scan(clip, images, class_names, seed=seed)
    return verdict.suspicion, verdict.searches


def _results(
    weighed: Weighed,
    readings: Sequence[Reading],
    vocabulary: Vocabulary,
    keys: Sequence[KeyReading] = (),
    tried: Sequence[Excess] = (),
) -> dict[str, Any]:
    """What scan.json says of searches; `tried` are those against the head of an adapter."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": weighed.answer,
        "findings": [finding_record(one) for one in weighed.findings],
        "doubts": [finding_record(one) for one in weighed.doubts],
        "controls": {"count": weighed.null.count, "mean_strength": weighed.null.total / weighed.null.count},
        "searches": [search_record(one, vocabulary) for one in readings],
        "adapter_classes": [excess_record(one, vocabulary.names) for one in tried],
        "words": [key_record(one, vocabulary) for one in keys[:SHOWN_KEYS]],
        "class_names": list(vocabulary.names[: vocabulary.n_listed]),
        "n_decoys": len(vocabulary.names) - vocabulary.n_listed,
    }


def _key_candidates(clip: LoadedCLIP, vocabulary: Vocabulary, template: str) -> KeyCandidates:
    words = decoy_words(clip.tokenizer)
    names = vocabulary.names[: min(NAMES, vocabulary.n_listed or NAMES)]

    def prompts_after(word: int) -> Tensor:
        texts = [f"{words[word]} {template.replace('{}', name)}" for name in names]
        return text_features(clip.model, clip.tokenizer, texts).cpu()

    return KeyCandidates(words, text_features(clip.model, clip.tokenizer, words).cpu(), prompts_after)


def _title(finding: Finding) -> str:
    return f"{finding.name or ' / '.join(finding.words[:3])} ({finding.kind}, rms {finding.best.search.size:g})"
