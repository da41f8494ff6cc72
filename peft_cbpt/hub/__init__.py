"""Sharing an adapter: its model card, the evidence beside it, and the push to the Hub."""

from peft_cbpt.hub.card import write_card
from peft_cbpt.hub.push import check_destination, push_adapter

__all__ = ["check_destination", "push_adapter", "write_card"]
