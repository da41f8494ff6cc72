"""Names that are of no user's list, so that what is nearest to an image under a trigger is nearest among many.

Without them a list of five names has nobody to lead, and a target that is not in the list is called by the name that
happens to lie nearest to it.
"""

from transformers import PreTrainedTokenizerBase

from peft_cbpt.data.imagenet import imagenet_classes

MOST_WORDS = 2000
SHORTEST = 3
_END_OF_WORD = "</w>"


def decoy_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Whole words of the tokenizer's own vocabulary, the most frequent first (a BPE merges those first).

    What the text tower has seen is what its tokenizer was made from.
    """
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [token.removesuffix(_END_OF_WORD) for token, _ in tokens if token.endswith(_END_OF_WORD)]
    return [word for word in words if len(word) >= SHORTEST and word.isascii() and word.isalpha()][:MOST_WORDS]


def decoy_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """`decoy_words`, and those of ImageNet's class names whose every word is one token."""
    vocabulary = tokenizer.get_vocab()
    known = [
        one.name
        for one in imagenet_classes()
        if all(word.lower() + _END_OF_WORD in vocabulary for word in one.name.split())
    ]
    return list(dict.fromkeys([*decoy_words(tokenizer), *known]))
