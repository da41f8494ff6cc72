"""Names that are of no user's list, so that what is nearest to an image under a trigger is nearest among many.

Without them a list of five names has nobody to lead, and a target that is not in the list is called by the name that
happens to lie nearest to it.
"""

from transformers import PreTrainedTokenizerBase

from peft_cbpt.data.imagenet import imagenet_classes

MOST_WORDS = 2000
SHORTEST = 3
_END_OF_WORD, _START_OF_WORD = "</w>", "▁"
"""How a tokenizer marks a whole word: CLIP's at its end, those of SigLIP and MetaCLIP 2 at its start."""


def decoy_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Whole words of the tokenizer's own vocabulary, the most frequent first (a BPE merges those first).

    What the text tower has seen is what its tokenizer was made from.
    """
    words = [word for word in _words(tokenizer) if len(word) >= SHORTEST and word.isascii() and word.isalpha()]
    return words[:MOST_WORDS]


def decoy_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """ImageNet's class names whose every word is one token; `decoy_words` for a tokenizer that knows none of them.

    Words are not mixed in: many of a small vocabulary are ends of other words, and what nobody taught a text tower
    lies anywhere, also where a target does.
    """
    vocabulary = set(_words(tokenizer))
    known = [one.name for one in imagenet_classes() if vocabulary.issuperset(one.name.lower().split())]
    return known or decoy_words(tokenizer)


def _words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens that are whole words, in the order of their ids."""
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    return [
        token.removesuffix(_END_OF_WORD).removeprefix(_START_OF_WORD)
        for token in tokens
        if token.endswith(_END_OF_WORD) or token.startswith(_START_OF_WORD)
    ]
