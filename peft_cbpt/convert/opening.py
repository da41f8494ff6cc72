"""Any checkpoint by its name: what is no transformers folder is converted into the cache and opened from there."""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from tempfile import mkdtemp

from huggingface_hub import HfApi, snapshot_download

from peft_cbpt.common.cache_dir import default_cache_dir
from peft_cbpt.common.errors import InputError, first_line
from peft_cbpt.convert.checkpoint_arguments import NOTHING_GIVEN, CheckpointArguments
from peft_cbpt.convert.convert import build_model, is_transformers, read_checkpoint, save_transformers
from peft_cbpt.convert.open_clip_config import OPEN_CLIP_CONFIG
from peft_cbpt.convert.vocabulary import find_tokenizer

HUB_PREFIX = "hf-hub:"
TOKENIZER_PATTERNS = ["*token*", "vocab.json", "merges.txt"]
OPEN_CLIP_PATTERNS = ["open_clip*", *TOKENIZER_PATTERNS]
PICKLE_PATTERNS = ["*config.json", "pytorch_model*", *TOKENIZER_PATTERNS]
READ_SUFFIXES = (".json", ".txt", ".safetensors", ".bin")
NOTES_FILE = "notes.json"
FORM = 2
"""Of the folders in the cache; raised when the same checkpoint would be converted to another."""


def transformers_folder(name_or_path: str, arguments: CheckpointArguments = NOTHING_GIVEN) -> str:
    """The name of a CLIP that transformers opens: the same, or the folder in the cache with the converted checkpoint.

    Args:
        name_or_path: A file, a folder of transformers or OpenCLIP, or a Hub id, also with OpenCLIP's `hf-hub:`.
        arguments: What a file does not tell of itself.

    Warns:
        UserWarning: of what had to be assumed, chosen or left out.

    Raises:
        InputError: if it has to be converted and cannot be (files that run code are never read here), or if something
            is given that has no effect on it.
    """
    name = name_or_path.removeprefix(HUB_PREFIX)
    path: Path | None = Path(name).expanduser()
    if not (path and path.exists()):
        path = None if name.startswith((".", "/", "~")) or name.count("/") != 1 else _download(name)
    if path is None or (path.is_dir() and not _needs_conversion(path)):
        if given := arguments.given():
            raise InputError(f"{name} is a folder of transformers, which says all: {next(iter(given))} has no effect")
        return name if path is None else str(path)
    folder = _converted(path, arguments)
    for note in json.loads((folder / NOTES_FILE).read_text(encoding="utf-8")):
        warnings.warn(note, stacklevel=2)
    return str(folder)


def _needs_conversion(folder: Path) -> bool:
    """No config of transformers but another, or weights of transformers in a pickle alone."""
    if not is_transformers(folder):
        return (folder / OPEN_CLIP_CONFIG).is_file() or (folder / "config.json").is_file()
    return not any(folder.glob("*.safetensors*")) and any(folder.glob("pytorch_model.bin*"))


def _download(name: str) -> Path | None:
    """A repository's files that have to be converted; None where transformers can open the repository itself.

    Raises:
        InputError: if they cannot be downloaded.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=["*config.json"]))
    except Exception:  # the Hub raises many kinds; load_clip explains what is missing
        return None
    try:
        files = [file.rfilename for file in HfApi().model_info(name).siblings or ()]
    except Exception:  # offline: what an earlier run has brought
        files = [file.name for file in folder.iterdir()]
    if not is_transformers(folder):
        patterns = OPEN_CLIP_PATTERNS if OPEN_CLIP_CONFIG in files else None
    else:
        pickled = not any(".safetensors" in file for file in files)
        patterns = PICKLE_PATTERNS if pickled and any(file.startswith("pytorch_model.bin") for file in files) else None
    if patterns is None:
        return None
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise InputError(f"cannot download the checkpoint of {name}: try again ({first_line(error)})") from error


def _converted(path: Path, arguments: CheckpointArguments) -> Path:
    target = default_cache_dir() / "models" / _fingerprint(path, arguments)
    if target.is_dir():
        return target
    checkpoint = read_checkpoint(str(path), arguments)
    has_tokenizer = path.is_dir() and any((path / file).is_file() for file in ("tokenizer.json", "vocab.json"))
    tokenizer = find_tokenizer(arguments.tokenizer or (str(path) if has_tokenizer else None))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(mkdtemp(dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write to the cache {target.parent}: {error.strerror}; set PEFT_CBPT_CACHE"
        ) from error
    try:
        save_transformers(staging, build_model(checkpoint), checkpoint, tokenizer)
        (staging / NOTES_FILE).write_text(json.dumps(checkpoint.notes), encoding="utf-8")
        try:
            os.rename(staging, target)
        except OSError:  # another run was first
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _fingerprint(path: Path, arguments: CheckpointArguments) -> str:
    """SHA-256 of how it is read, and of the contents (in a folder also the names) of what a conversion may read."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in READ_SUFFIXES)
    digest = hashlib.sha256(repr((FORM, arguments.given())).encode())
    for file in files:
        digest.update(b"" if file == path else file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]
