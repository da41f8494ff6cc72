"""Names that are of no user's list, so that what is nearest to an image under a trigger is nearest among many."""

from transformers import PreTrainedTokenizerBase

MOST_DECOYS = 2000
SHORTEST = 3
_END_OF_WORD = "</w>"


def decoy_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Whole words of the tokenizer's own vocabulary, the most frequent first (a BPE merges those first).

    What the text tower has seen is what its tokenizer was made from.
    """
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [token.removesuffix(_END_OF_WORD) for token, _ in tokens if token.endswith(_END_OF_WORD)]
    return [word for word in words if len(word) >= SHORTEST and word.isascii() and word.isalpha()][:MOST_DECOYS]
