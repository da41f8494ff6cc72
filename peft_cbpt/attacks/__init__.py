"""Backdoor attacks: triggers, one per file, and the poisoning of image-text pairs."""

from peft_cbpt.attacks.badclip import BadCLIP
from peft_cbpt.attacks.badnet import BadNet
from peft_cbpt.attacks.blended import Blended
from peft_cbpt.attacks.sig import SIG
from peft_cbpt.attacks.ssba import SSBA
from peft_cbpt.attacks.trigger import TRIGGERS, Trigger, apply_trigger, trigger_from_config, trigger_to_config
from peft_cbpt.attacks.trojvqa import TrojVQA
from peft_cbpt.attacks.wanet import WaNet

__all__ = [
    "SIG",
    "SSBA",
    "TRIGGERS",
    "BadCLIP",
    "BadNet",
    "Blended",
    "TrojVQA",
    "Trigger",
    "WaNet",
    "apply_trigger",
    "trigger_from_config",
    "trigger_to_config",
]
