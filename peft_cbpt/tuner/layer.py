"""The token embedding that knows the learned context, and the two hooks that go with it."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from peft_cbpt.tuner.config import CBPTConfig
from peft_cbpt.tuner.families import image_inputs
from peft_cbpt.tuner.prompts import ClassPrompts, RecordedIds


class CBPTEmbedding(nn.Module, BaseTunerLayer):
    """A token embedding in which a negative id is a learned context vector (the [V]_i^j of Eq. 8).

    Captions without negative ids are embedded exactly as by the base layer.

    Args:
        base_layer: The token embedding of CLIP's text tower, (vocabulary, d).
    """

    adapter_layer_names = ("cbpt_context",)
    other_param_names = ("class_prompts",)

    def __init__(self, base_layer: nn.Embedding) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.num_embeddings, base_layer.embedding_dim
        self.cbpt_context = nn.ParameterDict()
        self.class_prompts: dict[str, ClassPrompts] = {}
        self.without_encoder: set[str] = set()
        """Adapters that were saved with a repair of the image tower, whose weights have not been loaded."""
        self._hooks: list[RemovableHandle] = []

    @property
    def adapter_in_use(self) -> str | None:
        """The active adapter, enabled or not; None if there is none.

        Raises:
            ValueError: if several adapters are active.
        """
        if len(self.active_adapters) > 1:
            raise ValueError(
                f"The adapters {', '.join(self.active_adapters)} are active at once, but a CBPT model has "
                "one set of classes at a time. Choose one with set_adapter."
            )
        return self.active_adapters[0] if self.active_adapters else None

    def update_layer(self, adapter_name: str, config: CBPTConfig, width: int | None) -> None:
        """Adds the float32 context of a new adapter, (n_classes or 1, M, d), and its prompts.

        Args:
            adapter_name: The adapter.
            config: Its config, with recorded ids.
            width: How many tokens every prompt is filled up to, if the text tower wants that.
        """
        recorded = config.recorded_ids
        assert recorded is not None
        self.class_prompts[adapter_name] = ClassPrompts(config.learned_prompts(), recorded, width)
        self.cbpt_context[adapter_name] = nn.Parameter(self._initial_context(config, recorded))
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def _initial_context(self, config: CBPTConfig, recorded: RecordedIds) -> torch.Tensor:
        if config.context_init == "template":
            prompts = recorded.template_token_ids[: config.num_contexts]
            first = len(recorded.start)
            words = [ids[first : first + config.num_context_tokens] for ids in prompts]
            return self.weight.detach()[torch.tensor(words, device=self.weight.device)].float()
        shape = (config.num_contexts, config.num_context_tokens, self.out_features)
        return torch.randn(shape) * config.init_std

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Moves the context to the device of the base layer; unlike PEFT's own, keeps it in float32."""
        context = self.cbpt_context[adapter_name]
        if not context.is_meta:
            context.data = context.data.to(device or self.weight.device)

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter; with the last one the hooks go too."""
        super().delete_adapter(adapter_name)
        self.without_encoder.discard(adapter_name)
        if not self.cbpt_context:
            self.remove_hooks()

    def attach_hooks(self, model: Any) -> None:
        """Lets the CLIP of this layer answer calls with pixels only, and holds its vision tower in eval mode.

        Args:
            model: That CLIP.
        """
        if not self._hooks:
            self._hooks = [
                model.register_forward_pre_hook(fill_in_class_prompts, with_kwargs=True),
                model.vision_model.register_forward_pre_hook(hold_in_eval),
            ]

    def remove_hooks(self) -> None:
        """Takes the hooks off again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeds words and context vectors.

        Args:
            input_ids: Integers (..., L). Id k >= 0 is a word, -(1 + c * M + i) vector i of context c.

        Returns:
            (..., L, d) in the dtype of the base layer.

        Raises:
            ValueError: if several adapters are active and enabled.
        """
        if self.disable_adapters or self.adapter_in_use is None:
            return self.base_layer(input_ids)
        context = self.cbpt_context[self.adapter_in_use].flatten(0, 1)
        words = self.base_layer(input_ids.clamp(min=0))
        vectors = F.embedding((-1 - input_ids).clamp(min=0), context).to(words.dtype)
        return torch.where((input_ids < 0).unsqueeze(-1), vectors, words)

    def __repr__(self) -> str:
        return "cbpt." + super().__repr__()


def fill_in_class_prompts(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook of a CLIP: a call with pixels and no `input_ids` gets the active adapter's prompts.

    With the adapter disabled these are the template prompts. All other calls pass unchanged.

    Raises:
        ValueError: if the repair of the image tower is missing; for a call without pixels, with an empty batch or with
            `return_loss`, where an adapter is active.
    """
    input_ids = args[0] if args else kwargs.get("input_ids")
    pixel_values = args[1] if len(args) > 1 else kwargs.get("pixel_values")
    layer = model.text_model.embeddings.token_embedding
    if not layer.disable_adapters and layer.without_encoder.intersection(layer.active_adapters):
        raise ValueError(
            "The weights of encoder_lora have not been loaded, so the image tower is not repaired: transformers' own "
            "load_adapter does not know them. Load the adapter with PeftModel.from_pretrained(clip, adapter)."
        )
    given = input_ids is not None and pixel_values is not None
    if given or layer.adapter_in_use is None:
        return None
    if pixel_values is None:
        raise ValueError("pixel_values is missing: give images as (B, 3, H, W); class prompts are filled in")
    is_images = pixel_values.ndim == 4 or (pixel_values.ndim == 3 and "spatial_shapes" in kwargs)
    if not is_images or len(pixel_values) == 0:
        raise ValueError(f"pixel_values must be (B, 3, H, W) with at least one image, not {tuple(pixel_values.shape)}")
    if kwargs.get("return_loss"):
        raise ValueError(
            "return_loss compares images with captions of their own, and class prompts are none: leave it out, and "
            "take cross_entropy(logits_per_image, labels)"
        )
    prompts = layer.class_prompts[layer.adapter_in_use]
    input_ids = prompts.input_ids(learned=not layer.disable_adapters, device=pixel_values.device)
    images = image_inputs(model, pixel_values) if pixel_values.ndim == 4 else {"pixel_values": pixel_values}
    others = {name: value for name, value in kwargs.items() if name not in ("input_ids", "pixel_values")}
    return (input_ids, images.pop("pixel_values"), *args[2:]), others | images


def hold_in_eval(vision_model: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of the vision tower: nothing learns there, so batch norm statistics must not drift."""
    if vision_model.training:
        vision_model.eval()
