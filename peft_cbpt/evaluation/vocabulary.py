"""Names that searches are read against, as a CLIP's own text tower sees them."""

from collections.abc import Sequence

from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.detection.decoys import decoy_names
from peft_cbpt.detection.reading import Vocabulary
from peft_cbpt.evaluation.measure import text_features


def make_vocabulary(clip: LoadedCLIP, names: Sequence[str], template: str) -> Vocabulary:
    """The user's names and decoys with their text features, in a prompt with `{}`."""
    decoys = [name for name in decoy_names(clip.tokenizer) if name not in set(names)]
    every = [*names, *decoys]
    features = text_features(clip.model, clip.tokenizer, [template.replace("{}", name) for name in every])
    return Vocabulary(every, len(names), features.cpu())
