"""Settings of the default's inner loop."""

from dataclasses import dataclass

from peft_cbpt.common.errors import InputError


@dataclass(frozen=True)
class UniversalSettings:
    """How many images get which dummy trigger.

    Args:
        perturbed_share: Of the images, in every epoch; in [0, 1].
        universal_share: Of these, by a universal trigger; the others by an embedded one; in [0, 1].

    Raises:
        InputError: if a value is outside what is said above.
    """

    perturbed_share: float = 0.2
    universal_share: float = 0.8

    def __post_init__(self) -> None:
        for name in ("perturbed_share", "universal_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be between 0 and 1, it is {getattr(self, name)}")
