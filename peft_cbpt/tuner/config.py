"""The configuration of the class-wise prompts."""

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft import PeftConfig, PeftType
from torch import nn
from transformers import PreTrainedTokenizerBase

from peft_cbpt.tuner.fingerprint import base_fingerprints
from peft_cbpt.tuner.prompts import (
    RecordedIds,
    check_class_names,
    check_template_context,
    learned_prompts,
    tokenize_classes,
)
from peft_cbpt.tuner.weights_file import check_weights

POSITIONS = ("end", "middle", "front")
CONTEXT_INITS = ("normal", "template")


@dataclass
class CBPTConfig(PeftConfig):
    """
    Configuration of a [`CBPTModel`], the class-wise prompts of Eq. 8.

    Every class j has M context vectors [V]_1^j ... [V]_M^j of its own, p of them before and M - p after the
    tokens of its name. They are the only parameters that learn. With `unified_context` all classes share
    theirs, as CoOp's unified context does.

    Only `class_names` has to be given. The recorded ids at the end are found with the tokenizer when the
    config is first attached to a model, or by [`~CBPTConfig.tokenize`]; they are saved with the adapter, so
    that loading one needs no tokenizer.

    Args:
        class_names (`list[str]`):
            The classes, in the order of the labels: at least two, none of them blank, no two alike.
        num_context_tokens (`int`, defaults to 4):
            M, the number of context vectors of every class; at least 1.
        unified_context (`bool`, defaults to `False`):
            Whether all classes share one context, of shape (1, M, width), instead of having one each.
        class_token_position (`str`, defaults to `"end"`):
            Where the name stands among its context vectors: `"end"` after all of them (p = M), `"middle"`
            after the first half (p = M // 2), `"front"` before all of them (p = 0). A period follows the last
            of name and context, as in CoOp.
        context_init (`str`, defaults to `"normal"`):
            `"normal"` draws the context from N(0, `init_std`^2) with torch's global generator. `"template"`
            starts from the embeddings of the template's words, so that the untrained adapter classifies
            exactly like the template; it needs the position `"end"` and a template of M tokens before a
            closing `"{}."`.
        init_std (`float`, defaults to 0.02):
            The standard deviation of the normal initialisation; positive.
        template (`str`, defaults to `"a photo of a {}."`):
            The hand-written prompt with one `"{}"` for the class name, which stands in for the learned
            prompts while the adapter is disabled.
        tokenizer_name_or_path (`str`, *optional*):
            The tokenizer that finds the recorded ids. Defaults to the base model's `name_or_path`.
        class_token_ids (`list[list[int]]`, *optional*):
            Recorded: for each class the tokens of its name and of the trailing period.
        class_name_lengths (`list[int]`, *optional*):
            Recorded: how many of these tokens are the name's.
        template_token_ids (`list[list[int]]`, *optional*):
            Recorded: for each class the whole template prompt, from BOS to EOS.
        bos_token_id (`int`, *optional*):
            Recorded: the token every prompt starts with, if there is one.
        eos_token_id (`int`, *optional*):
            Recorded: the token every prompt ends with, if there is one, at which most text towers pool.
        pad_token_id (`int`, *optional*):
            Recorded: the token that prompts are filled up with where the text tower pools its last place (SigLIP).
        padding_side (`str`, *optional*):
            Recorded: the side on which they are filled up then, `"left"` or `"right"`.
        encoder_lora (`dict`, *optional*):
            Recorded by [`~encoder.with_encoder`]: the settings of a `peft.LoraConfig` (`r`, `lora_alpha`,
            `target_modules`, ...) whose update of the image tower the adapter carries besides. It does not learn.
        base_fingerprint (`dict[str, str]`, *optional*):
            Recorded by [`~CBPTConfig.record_base`]: the hash of the base's weights, and of its copies in half
            precision. Loading the adapter onto another model warns (`BaseMismatchWarning`); with
            `PeftModel.from_pretrained(base, adapter, strict=True)` it is an error.

    Raises:
        ValueError: if a value is outside what is said above.
    """

    target_modules: ClassVar[str] = r"text_model\.embeddings\.token_embedding"

    class_names: list[str] | None = field(
        default=None,
        metadata={"help": "The classes, in the order of the labels: at least two, no two alike."},
    )
    num_context_tokens: int = field(
        default=4, metadata={"help": "M of Eq. 8, the number of context vectors of every class."}
    )
    unified_context: bool = field(
        default=False, metadata={"help": "Whether all classes share the same M context vectors."}
    )
    class_token_position: str = field(
        default="end",
        metadata={
            "help": "Where the class name stands among its context vectors: 'end' (p = M of Eq. 8), "
            "'middle' (p = M // 2) or 'front' (p = 0)."
        },
    )
    context_init: str = field(
        default="normal",
        metadata={"help": "'normal' draws the context at random, 'template' starts from the template's words."},
    )
    init_std: float = field(default=0.02, metadata={"help": "The standard deviation of the normal initialisation."})
    template: str = field(
        default="a photo of a {}.",
        metadata={"help": "The hand-written prompt with one '{}', used while the adapter is disabled."},
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "The tokenizer to use. Defaults to the one of the base model."}
    )
    class_token_ids: list[list[int]] | None = field(
        default=None, metadata={"help": "Recorded: the tokens of each class name and its trailing period."}
    )
    class_name_lengths: list[int] | None = field(
        default=None, metadata={"help": "Recorded: how many of each class's tokens are its name's."}
    )
    template_token_ids: list[list[int]] | None = field(
        default=None, metadata={"help": "Recorded: the template prompt of each class, from BOS to EOS."}
    )
    bos_token_id: int | None = field(
        default=None, metadata={"help": "Recorded: the token every prompt starts with, if there is one."}
    )
    eos_token_id: int | None = field(default=None, metadata={"help": "Recorded: the token every prompt ends with."})
    pad_token_id: int | None = field(
        default=None, metadata={"help": "Recorded: what prompts of a fixed width are filled up with."}
    )
    padding_side: str | None = field(
        default=None, metadata={"help": "Recorded: the side on which prompts of a fixed width are filled up."}
    )
    encoder_lora: dict[str, Any] | None = field(
        default=None, metadata={"help": "Recorded: the LoraConfig of an update of the image tower, if there is one."}
    )
    base_fingerprint: dict[str, str] | None = field(
        default=None, metadata={"help": "Recorded: hash of the base's weights, by the dtype they are rounded to."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.strict = False
        self.peft_type = PeftType("CBPT")
        if self.auto_mapping is None:
            self.auto_mapping = {"base_model_class": "AutoModel", "parent_library": "transformers"}
        if self.class_names is not None:
            self.class_names = check_class_names(self.class_names)
        self._check_settings()
        self._check_recorded()

    @property
    def recorded_ids(self) -> RecordedIds | None:
        """The recorded ids, or None before the classes are tokenized."""
        values = {name: getattr(self, name) for name in RecordedIds._fields}
        return None if self.class_token_ids is None else RecordedIds(**values)

    @property
    def num_contexts(self) -> int:
        """How many contexts are learned: one for every class, or one if it is unified."""
        return 1 if self.unified_context else len(self.class_names or [])

    def learned_prompts(self) -> list[list[int]]:
        """The learned prompt of every class, see [`~prompts.learned_prompts`]; needs the recorded ids."""
        recorded = self.recorded_ids
        assert recorded is not None
        return learned_prompts(recorded, self.num_context_tokens, self.class_token_position, self.unified_context)

    def tokenize(self, tokenizer: PreTrainedTokenizerBase) -> "CBPTConfig":
        """Fills in the recorded ids and returns the config itself.

        Args:
            tokenizer: The tokenizer of the base model.

        Raises:
            ValueError: if `class_names` is missing, if the tokenizer does not end texts with EOS or does not know
                a name, if two names have the same tokens, or if `context_init="template"` asks for another
                `num_context_tokens`.
        """
        if self.class_names is None:
            raise ValueError("CBPTConfig has no class_names: pass the names of the classes, in label order.")
        recorded = tokenize_classes(self.class_names, self.template, tokenizer)
        if self.context_init == "template":
            check_template_context(recorded, self.class_names, self.num_context_tokens)
        for name, value in recorded._asdict().items():
            setattr(self, name, value)
        return self

    def record_base(self, model: nn.Module) -> "CBPTConfig":
        """Records the fingerprint of the base model and returns the config itself.

        Args:
            model: The CLIP that the adapter is made for, in the precision of its checkpoint.
        """
        self.base_fingerprint = base_fingerprints(model)
        return self

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        strict: bool = False,
        **kwargs: Any,
    ) -> "CBPTConfig":
        """Loads the config, and sees that the weights beside it are whole.

        `PeftModel.from_pretrained` comes through here.

        Args:
            pretrained_model_name_or_path: The adapter's folder or Hub id.
            subfolder: A folder in it.
            strict: Refuse another base model than the recorded one instead of warning.
            **kwargs: For `huggingface_hub.hf_hub_download`, such as `revision`, `token` and `cache_dir`.

        Raises:
            ValueError: if the config is missing or wrong, or if the weights are damaged or incomplete.
        """
        config: Any = super().from_pretrained(str(pretrained_model_name_or_path), subfolder, **kwargs)
        config.strict = strict
        download, _, _ = cls._split_kwargs(kwargs)
        check_weights(pretrained_model_name_or_path, subfolder, **download)
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Saves `adapter_config.json`.

        `PeftModel.save_pretrained` would write the class of the base model as its `auto_mapping`, and
        `AutoPeftModel` refuses classes outside transformers; the config's own `auto_mapping` is kept instead.
        """
        kwargs.pop("auto_mapping_dict", None)
        super().save_pretrained(save_directory, **kwargs)

    def _check_settings(self) -> None:
        if self.num_context_tokens < 1:
            raise ValueError(f"num_context_tokens must be at least 1, not {self.num_context_tokens}.")
        if self.class_token_position not in POSITIONS:
            raise ValueError(
                f"class_token_position must be one of {', '.join(POSITIONS)}, not {self.class_token_position!r}."
            )
        if self.context_init not in CONTEXT_INITS:
            raise ValueError(f"context_init must be one of {', '.join(CONTEXT_INITS)}, not {self.context_init!r}.")
        if not self.init_std > 0:
            raise ValueError(f"init_std must be positive, not {self.init_std}.")
        if self.template.count("{}") != 1:
            raise ValueError(f"template must hold exactly one '{{}}' for the class name; {self.template!r} does not.")
        if self.context_init == "template":
            if self.class_token_position != "end":
                raise ValueError(
                    "context_init='template' needs class_token_position='end', not "
                    f"{self.class_token_position!r}: the template's words stand before the name."
                )
            if not self.template.endswith("{}."):
                raise ValueError(
                    f"context_init='template' needs a template that ends with '{{}}.'; {self.template!r} does not."
                )

    def _check_recorded(self) -> None:
        needed = [name for name in RecordedIds._fields if name not in RecordedIds._field_defaults]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing and any(getattr(self, name) is not None for name in RecordedIds._fields):
            raise ValueError(f"The recorded ids belong together, but {', '.join(missing)} is missing.")
        num_classes = len(self.class_names or [])
        for name in ("class_token_ids", "class_name_lengths", "template_token_ids"):
            if not missing and len(getattr(self, name)) != num_classes:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {num_classes} class_names: "
                    "it was recorded for other classes."
                )
