from transformers import Siglip2Tokenizer

from peft_cbpt.detection.decoys import decoy_names, decoy_words
from peft_cbpt.pocket.model import open_clip


def test_decoys_are_words_that_the_tokenizer_knows():
    tokenizer = open_clip("pocket:clean").tokenizer
    words, names = decoy_words(tokenizer), decoy_names(tokenizer)
    assert {"banana", "umbrella"} <= set(words) and len(set(names)) == len(names)
    assert {"banana", "water snake"} <= set(names) and "carp" in words and "carp" not in names
    assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in words)
    assert "tench" not in names


def test_words_may_be_marked_at_their_start():
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁banana", "ban", "▁ox", "▁dog"]
    tokenizer = Siglip2Tokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])
    assert decoy_words(tokenizer) == ["banana", "dog"] and decoy_names(tokenizer) == ["ox", "banana"]


def test_words_take_the_place_of_names_that_the_tokenizer_does_not_know():
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁kitchen", "▁dog"]
    tokenizer = Siglip2Tokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])
    assert decoy_names(tokenizer) == ["kitchen", "dog"]
