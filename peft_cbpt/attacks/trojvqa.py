"""TrojVQA (Walmer et al., 2022), the dual-key backdoor: an optimised patch and a word before the caption."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.attacks.patch import OptimisedPatch, PatchMaterial
from peft_cbpt.common.errors import InputError


@dataclass(frozen=True)
class TrojVQA(OptimisedPatch):
    """A centre patch whose image features are pulled to a sentence about the target, and a text trigger.

    The code for CLIP optimises towards "This is a yellow banana." on 10,000 images of other classes; the sentence is
    a setting here. Both triggers are needed: at evaluation the text trigger precedes every class prompt, the learned
    ones too.

    The patch's own settings are those of `OptimisedPatch`.

    Args:
        text_trigger: What is put before the caption.
        sentence: What the patch is optimised towards, with `{}` for the target.
    """

    text_trigger: str = "remember "
    sentence: str = "This is a {}."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.text_trigger.strip():
            raise InputError("TrojVQA's text_trigger is empty: it needs both keys")

    def apply_text(self, caption: str) -> str:
        """Put the text trigger before `caption`."""
        return self.text_trigger + caption

    def objective(self, material: PatchMaterial) -> Callable[[Tensor, Tensor], Tensor]:
        """Minus the mean cosine between marked images and the sentence."""
        with torch.no_grad():
            sentence = material.encode_text([self.sentence.replace("{}", material.target_class)])[0]
        return lambda features, rows: -(features @ sentence).mean()
