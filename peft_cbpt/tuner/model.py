"""The tuner: puts a `CBPTEmbedding` into a CLIP and answers questions about its classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from peft_cbpt.tuner.base import check_base, check_prompts, load_tokenizer
from peft_cbpt.tuner.config import CBPTConfig
from peft_cbpt.tuner.encoder import FOLDER, add_lora, check_encoder, check_lora_weights, lora_layers, save_encoder
from peft_cbpt.tuner.export import KINDS, load_image_processor, write_clip, write_text_features
from peft_cbpt.tuner.families import family_of, num_places
from peft_cbpt.tuner.fingerprint import check_base_fingerprint
from peft_cbpt.tuner.layer import CBPTEmbedding
from peft_cbpt.tuner.prompts import length_groups


class CBPTModel(BaseTuner):
    """
    Class-wise Backdoor Prompt Tuning of a CLIP: learns the context of Eq. 8 for every class and nothing else.

    A call with pixels only, `model(pixel_values=pixels)`, classifies over the classes of the active adapter:
    `logits_per_image` is (B, n_classes). Calls with `input_ids` stay what they are in the base model. With
    the adapter disabled, pixels are classified with the template prompts instead. An adapter with `encoder_lora` also
    repairs the image tower, for every call, as long as it is active and enabled.

    `get_peft_model(clip, CBPTConfig(class_names=[...]))` builds one inside a `PeftModel`, which passes on
    everything that is defined here.

    Args:
        model ([`~transformers.CLIPModel`]): The CLIP to adapt, in place; of any family in `tuner.families`.
        peft_config ([`CBPTConfig`]): The configuration.
        adapter_name (`str`): The name of the adapter.
        low_cpu_mem_usage (`bool`, *optional*, defaults to `False`): Create the context on the meta device.

    Raises:
        ValueError: if the model is not a CLIP with both towers, or does not go with the configuration.
    """

    prefix = "cbpt_"
    tuner_layer_cls = CBPTEmbedding

    @property
    def _layer(self) -> CBPTEmbedding:
        return self.model.text_model.embeddings.token_embedding

    @property
    def class_names(self) -> list[str]:
        """The class names of the active adapter, in the order of the logits."""
        config: Any = self.peft_config[self._active_name()]
        return config.class_names

    def class_prompt_ids(self, class_indices: Sequence[int] | torch.Tensor | None = None) -> torch.Tensor:
        """Token ids of the active adapter's prompts, or of the template prompts while it is disabled.

        Args:
            class_indices: Indices into `class_names`, in any order; None for all classes.

        Returns:
            int64 (n, L), L being the longest of these prompts; shorter ones are filled up with EOS. Where the text
            tower wants that (SigLIP), L is all the places it has.

        Raises:
            ValueError: if not exactly one adapter is active, or `class_indices` is not flat, empty or no
                integers.
            IndexError: if an index is out of range.
        """
        prompts = self._layer.class_prompts[self._active_name()]
        return prompts.input_ids(not self._layer.disable_adapters, class_indices, self._layer.weight.device)

    def encode_class_prompts(
        self,
        class_indices: Sequence[int] | torch.Tensor | None = None,
        chunk_size: int | None = None,
        prefix_ids: Sequence[int] = (),
        kept_tokens: int = 0,
    ) -> torch.Tensor:
        """Text features of the class prompts, the e_t^j of Eq. 8, with gradient to the context.

        Prompts of like length are encoded together, so that little is computed on padding.

        Args:
            class_indices: Indices into `class_names`, in any order; None for all classes.
            chunk_size: How many prompts to encode at once, at least 1. The activations of each chunk are
                computed again in the backward pass, so that memory does not grow with the number of classes.
                None encodes all at once and keeps the activations.
            prefix_ids: Tokens to put before every prompt, after BOS, such as an attacker's text trigger.
            kept_tokens: With a `chunk_size`, the first chunks of up to so many tokens together keep their
                activations after all.

        Returns:
            float32 (n, projection_dim), rows of unit norm.

        Raises:
            ValueError, IndexError: as [`~CBPTModel.class_prompt_ids`].
            ValueError: if the prefix leaves no room for the prompts.
        """
        prompts, learned = self._layer.class_prompts[self._active_name()], not self._layer.disable_adapters
        indices = torch.arange(len(prompts.learned)) if class_indices is None else torch.as_tensor(class_indices)
        lengths = prompts.lengths(learned, indices)
        if len(prefix_ids) > (room := num_places(self.model) - max(lengths)):
            raise ValueError(f"prefix_ids has {len(prefix_ids)} tokens, but the text tower has room for {room} more.")
        groups = length_groups(lengths, chunk_size)
        features, kept = [], 0
        for group in groups:
            input_ids = prompts.input_ids(learned, indices[group], self._layer.weight.device, prefix_ids)
            kept += input_ids.numel()
            if chunk_size is None or kept <= kept_tokens:
                features.append(self._encode(input_ids))
            else:
                features.append(checkpoint(self._encode, input_ids, use_reentrant=False))
        places = torch.tensor([place for group in groups for place in group]).argsort()
        return torch.cat(features)[places.to(input_ids.device)]

    def encode_words(self, words: torch.Tensor) -> torch.Tensor:
        """Text features of words that no prompt stands around, float32 (n, projection_dim), rows of unit norm.

        Args:
            words: Token ids (n, k).
        """
        return self._encode(self._layer.class_prompts[self._active_name()].of_words(words))

    def class_prompt_lengths(self) -> list[int]:
        """How many tokens the prompt of every class has, from BOS to EOS, without what fills it up."""
        prompts = self._layer.class_prompts[self._active_name()]
        return prompts.lengths(not self._layer.disable_adapters)

    @torch.no_grad()
    def export(
        self,
        kind: str,
        output_dir: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: BaseImageProcessor | None = None,
    ) -> None:
        """Writes the active adapter's classifier for use without PEFT.

        Args:
            kind: `"text_features"` writes the features of the class prompts, to be multiplied with image features of
                the base; of the base with the LoRA in the sub-folder `encoder`, if the adapter has `encoder_lora`.
                `"clip"` writes a CLIP of its own in the dtype of the base, with a repaired image tower then, whose
                vocabulary has n_classes * M more words, for the zero-shot pipeline.
            output_dir: The folder to write to; made if missing.
            tokenizer: The tokenizer of the base model, for `"clip"`; by default it is found as for a new adapter.
            image_processor: The image processor of the base model, for `"clip"`; by default the one under its name.

        Raises:
            ValueError: for an unknown kind, a disabled adapter, or what cannot be written as a plain CLIP.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}.")
        name = self._active_name()
        if self._layer.disable_adapters:
            raise ValueError("The adapter is disabled, and its template prompts are not purified: enable it first.")
        config: Any = self.peft_config[name]
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "text_features":
            training = self.training
            features = self.eval().encode_class_prompts()
            self.train(training)
            write_text_features(folder, features, self.model.logit_scale.float().exp().item(), config.class_names)
            if config.encoder_lora:
                save_encoder(self, name, folder / FOLDER, config.base_model_name_or_path)
        else:
            tokenizer = tokenizer or load_tokenizer(config, self.model)
            image_processor = image_processor or load_image_processor(self.model)
            write_clip(folder, self.model, name, config, tokenizer, image_processor)

    def _encode(self, input_ids: torch.Tensor) -> torch.Tensor:
        features = self.model.get_text_features(input_ids=input_ids, return_dict=True).pooler_output
        return F.normalize(features.float(), dim=-1)

    def _active_name(self) -> str:
        name = self._layer.adapter_in_use
        if name is None:
            raise ValueError("No CBPT adapter is active; choose one with set_adapter.")
        return name

    def train(self, mode: bool = True) -> "CBPTModel":
        """Sets the mode of the text tower; the vision tower, in which nothing learns, stays in eval mode."""
        super().train(mode)
        self.model.vision_model.eval()
        return self

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """As PEFT's; the LoRA of an adapter that has one comes after the context."""
        if state_dict is not None:
            state_dict = {name: value for name, value in state_dict.items() if ".lora_" not in name}
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        config: Any = self.peft_config[adapter_name]
        if config.encoder_lora:
            add_lora(model, adapter_name, config, low_cpu_mem_usage)
            self._activate_lora()
            if config.inference_mode:  # it is being loaded
                self._layer.without_encoder.add(adapter_name)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Chooses the active adapter, for the prompts and for the image tower."""
        super().set_adapter(adapter_name, inference_mode)
        self._activate_lora()

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter, with what it did to the image tower."""
        super().delete_adapter(adapter_name)
        for layer in lora_layers(self.model):
            if adapter_name in layer.active_adapters:  # else PEFT would choose another one for it, and say so
                layer.set_adapter([one for one in layer.active_adapters if one != adapter_name])
            layer.delete_adapter(adapter_name)
        self._activate_lora()

    def _activate_lora(self) -> None:
        for layer in lora_layers(self.model):
            layer.set_adapter(self.active_adapters)

    def unload(self) -> nn.Module:
        """Takes the adapters and hooks out and returns the base model."""
        for module in self.model.modules():
            if isinstance(module, CBPTEmbedding):
                module.remove_hooks()
        return super().unload()

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(
            "CBPT cannot be merged: its prompts are new input tokens, and no weight of CLIP could take them "
            "up. Keep the adapter and load it with PeftModel.from_pretrained, or export() it; unload() gives back "
            "the base."
        )

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        check_base(model)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> CBPTConfig:
        if peft_config.recorded_ids is None:
            peft_config.tokenize(load_tokenizer(peft_config, self.model))
        check_prompts(peft_config, self.model)
        if peft_config.encoder_lora:
            check_encoder(peft_config, self.model)
        check_base_fingerprint(peft_config, self.model)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, CBPTEmbedding) else CBPTEmbedding(target)
        width = num_places(self.model) if family_of(self.model).fills_prompts else None
        layer.update_layer(adapter_name, peft_config, width)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)
        layer.attach_hooks(self.model)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """As PEFT's, but refuses weights that are missing or do not fit instead of leaving random ones."""
        found = [tuple(value.shape) for key, value in state_dict.items() if key.endswith(".cbpt_context")]
        layer = next(module for module in model.modules() if isinstance(module, CBPTEmbedding))
        needed = tuple(layer.cbpt_context[adapter_name].shape)
        if found != [needed]:
            raise ValueError(
                f"The config of adapter {adapter_name!r} and the base model need a cbpt_context of shape "
                f"{needed} (n_classes or 1, num_context_tokens, width), but the checkpoint has {found or 'none'}."
            )
        fitting = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        check_lora_weights(model, adapter_name, fitting)
        layer.without_encoder.discard(adapter_name)
        return fitting
