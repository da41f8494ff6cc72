"""Classifiers to measure: template prompts, CBPT adapters, other PEFT adapters, whole models."""

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel
from torch import Tensor

from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import EncodeImage, image_encoder
from peft_cbpt.common.errors import InputError, first_line
from peft_cbpt.data.labels import label_key
from peft_cbpt.detection.heads import Heads
from peft_cbpt.evaluation.measure import template_text_features
from peft_cbpt.pocket.model import open_clip, resolve_model
from peft_cbpt.tuner import CBPTConfig
from peft_cbpt.tuner.encoder import encoder_weights
from peft_cbpt.tuner.fingerprint import computation, encoder_fingerprint, tensors_fingerprint, weights_fingerprint

TEMPLATE = "template"
ADAPTED = "adapted"
"""Name of the classifier of a model whose adapter is loaded already."""
# Where an adapter came from does not change what it answers.
_NOT_HASHED = ("base_model_name_or_path", "revision", "inference_mode", "tokenizer_name_or_path", "auto_mapping")


@dataclass(frozen=True)
class Classifier:
    """Something that gives class features for the images that its CLIP encodes.

    Args:
        name: What to call it.
        kind: `template`, `cbpt`, `peft` or `model`.
        clip: The CLIP that encodes images; classifiers that share one share its image features.
        fingerprint: Hash of all that decides its answers.
        class_features: From class names, and the attack under which they are used or None, to unit-norm features
            (n, D) on the CPU. Raises `InputError` if it does not know a class.
    """

    name: str
    kind: str
    clip: LoadedCLIP
    fingerprint: str
    class_features: Callable[[Sequence[str], Attack | None], Tensor]


def adapter_features(model: PeftModel, clip: LoadedCLIP, adapter: bool = True) -> Callable[[str], Tensor]:
    """From a text trigger, empty for none, to features (n_classes, D) of a CBPT adapter's prompts after it.

    Without `adapter` they are those of the template prompts.
    """

    @cache
    @torch.no_grad()
    def features(text_trigger: str) -> Tensor:
        model.eval()
        with nullcontext() if adapter else model.disable_adapter():
            return model.encode_class_prompts(prefix_ids=clip.word_ids(text_trigger)).cpu()

    return features


def adapter_encoder(model: PeftModel, clip: LoadedCLIP, adapter: bool = True) -> EncodeImage:
    """The image encoder of a CLIP with an adapter, which may have repaired it; without `adapter` as it was."""
    encode = image_encoder(clip.model, clip.normalize)

    def encoded(pixels: Tensor) -> Tensor:
        with nullcontext() if adapter else model.disable_adapter():
            return encode(pixels)

    return encoded


def beside_undefended(model: PeftModel, clip: LoadedCLIP) -> tuple[EncodeImage, Heads]:
    """The head of a CBPT adapter beside the undefended one, and the features that both answer on.

    Where the adapter has repaired the encoder, each head has features of its own: those of both encoders stand one
    after the other, (B, 2 D), and each head has zeros for the other's.
    """
    adapted, undefended = (adapter_features(model, clip, adapter=own)("") for own in (True, False))
    scale = clip.model.logit_scale.exp().item()
    if not repairs_encoder(model.active_peft_config):
        return image_encoder(clip.model, clip.normalize), Heads(adapted, undefended, scale)
    encoders = [adapter_encoder(model, clip, adapter=own) for own in (True, False)]
    return one_after_the_other(encoders), Heads(*apart(adapted, undefended), scale)


def one_after_the_other(encoders: Sequence[EncodeImage]) -> EncodeImage:
    """Features of several encoders, one after the other."""
    return lambda pixels: torch.cat([encode(pixels) for encode in encoders], dim=1)


def apart(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two heads (n, D) for features (B, 2 D) of which the first half is the first's."""
    return F.pad(first, (0, second.shape[1])), F.pad(second, (first.shape[1], 0))


def repairs_encoder(config: PeftConfig) -> bool:
    """Whether images have other features with an adapter than without it: all but those of prompts alone."""
    return not isinstance(config, CBPTConfig) or bool(config.encoder_lora)


def check_room(model: PeftModel, clip: LoadedCLIP, attacks: Mapping[str, Attack]) -> None:
    """See that attacks' text triggers fit before the longest prompt of an adapter, learned or of its template.

    Raises:
        InputError: if one does not.
    """
    with model.disable_adapter():
        longest = max(model.class_prompt_lengths())
    room = clip.max_text_length - max(longest, *model.class_prompt_lengths())
    for name, attack in attacks.items():
        if (needed := len(clip.word_ids(attack.text_trigger))) > room:
            raise InputError(
                f"the text trigger of {name} has {needed} tokens, but before the prompts is room for {room}: "
                "lower num_context_tokens, or leave this attack out"
            )


def open_classifiers(
    names: Sequence[str | PeftModel], base: LoadedCLIP, template: str, text_triggers: Sequence[str] = ()
) -> list[Classifier]:
    """Open classifiers by name.

    Args:
        names: `template` for the base model's own zero-shot head; the folder or Hub id of a CBPT adapter, of another
            PEFT adapter (such as LoRA), or of a whole CLIP; `pocket:NAME`; or an adapted base that is loaded already.
        base: The model that adapters belong to.
        template: The prompt of all but CBPT adapters.
        text_triggers: What attacks put before the prompts.

    Raises:
        InputError: if one is named twice, or cannot be loaded.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"the classifier {twice[0]!r} is named twice: name every classifier once")
    base_fingerprint = clip_fingerprint(base)
    return [_open(name, base, base_fingerprint, template, text_triggers) for name in names]


def clip_fingerprint(clip: LoadedCLIP, adapters: bool = False) -> str:
    """Hash of a CLIP's weights, those of adapters if wanted, of what it makes of them, and of how it takes images."""
    weights = encoder_fingerprint(clip.model) if adapters else weights_fingerprint(clip.model)
    return _hash(weights, computation(clip.model.config), clip.image_processor.to_dict())


def _open(
    given: str | PeftModel, base: LoadedCLIP, base_fingerprint: str, template: str, text_triggers: Sequence[str]
) -> Classifier:
    if given == TEMPLATE:
        fingerprint = _hash(base_fingerprint, template)
        return Classifier(TEMPLATE, "template", base, fingerprint, _template_features(base, template))
    name = given if isinstance(given, str) else ADAPTED
    config = adapter_config(given) if isinstance(given, str) else given.active_peft_config
    if isinstance(config, CBPTConfig):
        if isinstance(given, PeftModel):
            own = _of_adapted(given, base)
            return _cbpt_classifier(name, given, config, own, base_fingerprint, text_triggers)
        clip = _copy_of(base) if repairs_encoder(config) else base
        model = attach_adapter(given, clip)
        classifier = _cbpt_classifier(name, model, config, clip, base_fingerprint, text_triggers)
        if clip is base:
            model.unload()
        return classifier
    if isinstance(given, str):
        clip, kind = (_with_adapter(given, base), "peft") if config else (open_clip(given), "model")
    else:
        clip, kind = _of_adapted(given, base), "peft"
    settings = {} if config is None else _settings(config)
    fingerprint = _hash(clip_fingerprint(clip, adapters=True), template, settings)
    return Classifier(name, kind, clip, fingerprint, _template_features(clip, template))


def adapter_config(name: str) -> PeftConfig | None:
    """The config of a PEFT adapter, or None if there is none under this name."""
    try:
        return PeftConfig.from_pretrained(resolve_model(name))
    except InputError:
        raise
    except Exception:  # no adapter_config.json: PEFT and the Hub raise many kinds; load_clip explains what is missing
        return None


def _template_features(clip: LoadedCLIP, template: str) -> Callable[[Sequence[str], Attack | None], Tensor]:
    @cache
    def features_of(class_names: tuple[str, ...], prompt: str) -> Tensor:
        return template_text_features(clip.model, clip.tokenizer, class_names, prompt).cpu()

    def class_features(class_names: Sequence[str], attack: Attack | None) -> Tensor:
        if attack and attack.text_trigger:
            _check_room(clip, class_names, template, attack.text_trigger)
        return features_of(tuple(class_names), attack.trigger.apply_text(template) if attack else template)

    return class_features


def _check_room(clip: LoadedCLIP, class_names: Sequence[str], template: str, text_trigger: str) -> None:
    """See that the longest prompt is not cut off by a text trigger before it."""
    longest = max(len(ids) for ids in clip.tokenizer([template.replace("{}", name) for name in class_names]).input_ids)
    if (needed := len(clip.word_ids(text_trigger))) > (room := clip.max_text_length - longest):
        raise InputError(
            f"the trigger {text_trigger!r} has {needed} tokens, but before the prompts of the template is room for "
            f"{room}: shorten the template, or leave this attack out"
        )


def _cbpt_classifier(
    name: str,
    model: PeftModel,
    config: CBPTConfig,
    base: LoadedCLIP,
    base_fingerprint: str,
    text_triggers: Sequence[str],
) -> Classifier:
    known = {label_key(class_name): row for row, class_name in enumerate(model.class_names)}
    adapter: Any = model.active_adapter
    context = next(value for key, value in model.state_dict().items() if key.endswith(f"cbpt_context.{adapter}"))
    content = hashlib.sha256(context.detach().float().cpu().numpy().tobytes()).hexdigest()
    if config.encoder_lora:
        content = _hash(content, tensors_fingerprint(encoder_weights(model, adapter)))
    encode = adapter_features(model, base)
    try:
        features_after = {text_trigger: encode(text_trigger) for text_trigger in {"", *text_triggers}}
    except ValueError as error:
        raise InputError(f"the adapter {name} cannot be used with these triggers: {error}") from error

    def class_features(class_names: Sequence[str], attack: Attack | None) -> Tensor:
        if missing := [class_name for class_name in class_names if label_key(class_name) not in known]:
            raise InputError(
                f"the adapter {name} knows {len(known)} classes, but not {missing[0]!r} nor {len(missing) - 1} more "
                f"of the dataset's {len(class_names)}: keep those it knows with class_names"
            )
        features = features_after[attack.text_trigger if attack else ""]
        return features[[known[label_key(class_name)] for class_name in class_names]]

    fingerprint = _hash(base_fingerprint, content, _settings(config))
    return Classifier(name, "cbpt", base, fingerprint, class_features)


def _with_adapter(name: str, base: LoadedCLIP) -> LoadedCLIP:
    """A copy of the base with an adapter in it, which may change the image encoder too."""
    adapted: Any = attach_adapter(name, _copy_of(base)).get_base_model().eval()
    return LoadedCLIP(adapted, base.tokenizer, base.image_processor)


def _of_adapted(model: PeftModel, base: LoadedCLIP) -> LoadedCLIP:
    """The CLIP in an adapted model; `base` itself if it is the same, so that image features are shared."""
    own: Any = model.get_base_model()
    return base if own is base.model else LoadedCLIP(own, base.tokenizer, base.image_processor)


def _copy_of(base: LoadedCLIP) -> LoadedCLIP:
    return LoadedCLIP(copy.deepcopy(base.model), base.tokenizer, base.image_processor)


def attach_adapter(name: str, clip: LoadedCLIP) -> PeftModel:
    """Put the adapter of a folder or Hub id into a CLIP, in place.

    Raises:
        InputError: if it cannot be loaded, or does not fit the model.
    """
    try:
        with warnings.catch_warnings():  # an adapter whose weights find no place would be the plain model
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(clip.model, resolve_model(name))
    except Exception as error:
        raise InputError(
            f"cannot load the adapter {name}: give the folder or Hub id of one for this model ({first_line(error)})"
        ) from error


def _settings(config: PeftConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in _NOT_HASHED}


def _hash(*parts: str | Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, set | frozenset) else str(value)

    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=plain).encode()).hexdigest()
