"""Class-wise Backdoor Prompt Tuning (CBPT): takes the backdoor's power away from a CLIP checkpoint."""

from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetModel
from peft_cbpt.tuner import BaseMismatchWarning, CBPTConfig, CBPTModel

__version__ = "0.1.0"
__all__ = ["BaseMismatchWarning", "CBPTConfig", "CBPTModel", "CLIPResNetConfig", "CLIPResNetModel"]
