"""Picture (Chen et al., 2017): a picture mixed into the whole image."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from peft_cbpt.attacks.generated_picture import generated_picture
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError


@dataclass(frozen=True)
class Picture:
    """`(1 - alpha) * image + alpha * picture`, one fixed picture for all images.

    The paper and BackdoorBench blend a drawing of a cat; the picture here is generated, so that it has no licence and
    fits every resolution. `Blended` is the same with noise.

    Args:
        alpha: Weight of the picture, in (0, 1].
        seed: Seed of the picture.
    """

    alpha: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise InputError(f"Picture's alpha is a weight in (0, 1], not {self.alpha}")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Blend the picture into pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        picture = generated_picture((pixels.shape[-2], pixels.shape[-1]), "picture", self.seed)
        return (1 - self.alpha) * pixels + self.alpha * picture.to(pixels)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
