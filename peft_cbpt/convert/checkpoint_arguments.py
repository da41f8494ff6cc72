"""What a bare file of weights does not say of itself; a folder's own config says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft_cbpt.common.errors import InputError

INTERPOLATIONS = {"bicubic": 3, "bilinear": 2}
"""By name the numbers that Pillow and image processors know; loading an adapter needs no Pillow."""
RESIZE_MODES = ("shortest", "squash")


@dataclass(frozen=True, kw_only=True)
class CheckpointArguments:
    """How a checkpoint is read where neither its weights nor a config tell."""

    activation: str | None = field(
        default=None,
        metadata={
            "help": "Of a file: quick_gelu, as in OpenAI's models and those trained from them, by default; OpenCLIP "
            "models whose name lacks `quickgelu` need gelu.",
            "choices": ["quick_gelu", "gelu"],
        },
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Of a file: mean of red, green and blue in [0, 1]; OpenAI's by default."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Of a file: standard deviation of the same; OpenAI's by default."}
    )
    interpolation: str | None = field(
        default=None, metadata={"help": "Of a file: how images are resized.", "choices": list(INTERPOLATIONS)}
    )
    resize_mode: str | None = field(
        default=None,
        metadata={
            "help": "Of a file: the shortest side to the model's, then the middle, or both sides to it.",
            "choices": list(RESIZE_MODES),
        },
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Of a file: folder or Hub id of its tokenizer; CLIP's own by default."}
    )
    weights_key: str | None = field(
        default=None, metadata={"help": "Which weights of a training checkpoint to take, such as state_dict_ema."}
    )

    def __post_init__(self) -> None:
        for name in ("image_mean", "image_std"):
            numbers = getattr(self, name)
            if numbers is not None and len(numbers) != 3:
                raise InputError(f"{name} takes three numbers, of red, green and blue, not {len(numbers)}")
        if self.image_std is not None and min(self.image_std) <= 0:
            raise InputError(f"image_std must be positive, it is {self.image_std}")
        for name, known in (
            ("activation", ("quick_gelu", "gelu")),
            ("interpolation", tuple(INTERPOLATIONS)),
            ("resize_mode", RESIZE_MODES),
        ):
            if getattr(self, name) not in (None, *known):
                raise InputError(f"{name} is {' or '.join(known)}, not {getattr(self, name)!r}")

    def given(self) -> dict[str, Any]:
        """The settings that were given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def beside(self, said: Mapping[str, Any], source: str) -> dict[str, Any]:
        """All that is known of a checkpoint: what its config says and what was given.

        Raises:
            InputError: if something was given of which the config says otherwise.
        """
        for name, value in self.given().items():
            if name in said and said[name] != value:
                raise InputError(f"{source} says {name} {said[name]}, not {value}: leave it out, or mend it there")
        return {**said, **self.given()}


NOTHING_GIVEN = CheckpointArguments()
