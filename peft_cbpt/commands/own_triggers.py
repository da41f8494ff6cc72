"""The option of all commands that read the name of a trigger."""

from dataclasses import dataclass, field

from peft_cbpt.attacks.own_triggers import allow_trigger


@dataclass
class OwnTriggers:
    """Triggers of the user's own."""

    allow_triggers: list[str] = field(
        default_factory=list,
        metadata={"help": "Triggers of your own, MODULE:CLASS, whose code may be run. Only from people you trust."},
    )

    def allow(self) -> None:
        """Import them."""
        for name in self.allow_triggers:
            allow_trigger(name)
