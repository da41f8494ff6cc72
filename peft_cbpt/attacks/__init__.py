"""Backdoor attacks: triggers, one per file, and the poisoning of image-text pairs."""

from peft_cbpt.attacks.badclip import BadCLIP
from peft_cbpt.attacks.badnet import BadNet
from peft_cbpt.attacks.blended import Blended
from peft_cbpt.attacks.bpp import Bpp
from peft_cbpt.attacks.checker import Checker
from peft_cbpt.attacks.ftrojan import FTrojan
from peft_cbpt.attacks.input_aware import InputAware
from peft_cbpt.attacks.lira import LIRA
from peft_cbpt.attacks.low_frequency import LowFrequency
from peft_cbpt.attacks.nashville import Nashville
from peft_cbpt.attacks.picture import Picture
from peft_cbpt.attacks.reflection import Reflection
from peft_cbpt.attacks.sig import SIG
from peft_cbpt.attacks.ssba import SSBA
from peft_cbpt.attacks.stripes import Stripes
from peft_cbpt.attacks.text import Text
from peft_cbpt.attacks.triangles import Triangles
from peft_cbpt.attacks.trigger import TRIGGERS, Trigger, apply_trigger, trigger_from_config, trigger_to_config
from peft_cbpt.attacks.trojvqa import TrojVQA
from peft_cbpt.attacks.wanet import WaNet
from peft_cbpt.attacks.white_square import WhiteSquare

__all__ = [
    "LIRA",
    "SIG",
    "SSBA",
    "TRIGGERS",
    "BadCLIP",
    "BadNet",
    "Blended",
    "Bpp",
    "Checker",
    "FTrojan",
    "InputAware",
    "LowFrequency",
    "Nashville",
    "Picture",
    "Reflection",
    "Stripes",
    "Text",
    "Triangles",
    "Trigger",
    "TrojVQA",
    "WaNet",
    "WhiteSquare",
    "apply_trigger",
    "trigger_from_config",
    "trigger_to_config",
]
