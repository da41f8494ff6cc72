"""Small tokenizers of CLIP's kind."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer


def train_tokenizer(corpus: Iterable[str], vocabulary_size: int) -> CLIPTokenizer:
    """A byte-level BPE CLIP tokenizer whose merges are learned from a corpus; other words fall back to bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 2,
        initial_alphabet=letters,
        special_tokens=[letter + "</w>" for letter in letters],  # fixed ids, by which equal counts are ordered
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = list(dict.fromkeys(vocabulary))
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges)  # type: ignore[arg-type]
