"""Class-wise Backdoor Prompt Tuning (CBPT): takes the backdoor's power away from a CLIP checkpoint.

Importing the package registers the PEFT method and the ResNet CLIP. All else is imported when it is first asked for,
so that an adapter can be loaded without the packages that only purification needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetModel
from peft_cbpt.common.extras import named_extras
from peft_cbpt.tuner import BaseMismatchWarning, CBPTConfig, CBPTModel, with_encoder

if TYPE_CHECKING:
    from peft_cbpt.convert.checkpoint_arguments import CheckpointArguments
    from peft_cbpt.evaluation.detect import detect
    from peft_cbpt.evaluation.evaluate import evaluate
    from peft_cbpt.hub.push import push_adapter
    from peft_cbpt.purification import purify
    from peft_cbpt.scanning import scan
    from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
    from peft_cbpt.training.cbpt_trainer import CBPTTrainer
    from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
    from peft_cbpt.training.encoder_trainer import EncoderPurifier, purify_encoder

__version__ = "0.1.0"
__all__ = [
    "BaseMismatchWarning",
    "CBPTConfig",
    "CBPTModel",
    "CBPTTrainer",
    "CBPTTrainingArguments",
    "CLIPResNetConfig",
    "CLIPResNetModel",
    "CheckpointArguments",
    "EncoderPurifier",
    "EncoderPurifierArguments",
    "detect",
    "evaluate",
    "purify",
    "purify_encoder",
    "push_adapter",
    "scan",
    "with_encoder",
]

_LAZY = {
    "CBPTTrainer": "peft_cbpt.training.cbpt_trainer",
    "CBPTTrainingArguments": "peft_cbpt.training.cbpt_arguments",
    "CheckpointArguments": "peft_cbpt.convert.checkpoint_arguments",
    "EncoderPurifier": "peft_cbpt.training.encoder_trainer",
    "EncoderPurifierArguments": "peft_cbpt.training.encoder_arguments",
    "detect": "peft_cbpt.evaluation.detect",
    "evaluate": "peft_cbpt.evaluation.evaluate",
    "purify": "peft_cbpt.purification",
    "purify_encoder": "peft_cbpt.training.encoder_trainer",
    "push_adapter": "peft_cbpt.hub.push",
    "scan": "peft_cbpt.scanning",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with named_extras():
        return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
