"""Settings of `peft_cbpt.purify` beside those of the tuning."""

from dataclasses import dataclass, field

from peft_cbpt.clip.templates import PLAIN_TEMPLATE
from peft_cbpt.data.shots import ShotArguments
from peft_cbpt.tuner.config import CONTEXT_INITS


@dataclass(kw_only=True)
class PurifyArguments(ShotArguments):
    """Which images and classes, and what prompts."""

    num_context_tokens: int = field(default=4, metadata={"help": "M of Eq. 8."})
    context_init: str = field(
        default="normal",
        metadata={
            "help": "What the context starts from: normal (noise, as in the paper) or template (its words).",
            "choices": list(CONTEXT_INITS),
        },
    )
    unified_context: bool = field(default=False, metadata={"help": "One context for all classes, not one for each."})
    class_token_position: str = field(default="end", metadata={"help": "end, middle or front."})
    template: str = field(default=PLAIN_TEMPLATE, metadata={"help": "Prompt of the undefended classifier."})
    base_model_id: str | None = field(
        default=None, metadata={"help": "Hub id of the model, where its name is that of a folder."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew where the output folder holds checkpoints of another run."}
    )
