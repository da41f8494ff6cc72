"""Backdoor attacks: triggers, one per file, and the poisoning of image-text pairs."""

from peft_cbpt.attacks.badnet import BadNet
from peft_cbpt.attacks.trigger import Trigger, apply_trigger, trigger_from_config, trigger_to_config

__all__ = ["BadNet", "Trigger", "apply_trigger", "trigger_from_config", "trigger_to_config"]
