"""Any checkpoint by its name: what is no transformers folder is converted into the cache and opened from there."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

from huggingface_hub import snapshot_download

from peft_cbpt.common.cache_dir import default_cache_dir
from peft_cbpt.common.errors import InputError
from peft_cbpt.convert.convert import OPEN_CLIP_CONFIG, build_model, read_checkpoint, save_transformers
from peft_cbpt.convert.vocabulary import find_tokenizer

HUB_PREFIX = "hf-hub:"
OPEN_CLIP_PATTERNS = ["open_clip*", "*token*", "vocab.json", "merges.txt"]
READ_SUFFIXES = (".json", ".txt", ".safetensors", ".bin")


def transformers_folder(name_or_path: str) -> str:
    """The name of a CLIP that transformers opens: the same, or the folder in the cache with the converted checkpoint.

    Args:
        name_or_path: A file, a folder of transformers or OpenCLIP, or a Hub id, also with OpenCLIP's `hf-hub:`.

    Raises:
        InputError: if it has to be converted and cannot be; files that run code are never read here.
    """
    name = name_or_path.removeprefix(HUB_PREFIX)
    path = Path(name).expanduser()
    if not path.exists():
        found = None if name.startswith((".", "/", "~")) or name.count("/") != 1 else _open_clip_download(name)
        if found is None:
            return name
        path = found
    if path.is_dir() and not _needs_conversion(path):
        return str(path)
    return str(_converted(path))


def _needs_conversion(folder: Path) -> bool:
    """OpenCLIP's files beside no config of transformers, or weights of transformers in a pickle alone."""
    if not _is_transformers(folder):
        return (folder / OPEN_CLIP_CONFIG).is_file()
    return not any(folder.glob("*.safetensors*")) and any(folder.glob("pytorch_model.bin*"))


def _is_transformers(folder: Path) -> bool:
    try:  # timm writes a config.json, too
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _open_clip_download(name: str) -> Path | None:
    """OpenCLIP's files of a repository that has no config of transformers; None where transformers may try."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=["config.json", OPEN_CLIP_CONFIG]))
        if _is_transformers(folder) or not (folder / OPEN_CLIP_CONFIG).is_file():
            return None
        return Path(snapshot_download(name, allow_patterns=OPEN_CLIP_PATTERNS))
    except Exception:  # the Hub raises many kinds; load_clip explains what is missing
        return None


def _converted(path: Path) -> Path:
    target = default_cache_dir() / "models" / _fingerprint(path)
    if target.is_dir():
        return target
    checkpoint = read_checkpoint(str(path))
    has_tokenizer = path.is_dir() and any((path / file).is_file() for file in ("tokenizer.json", "vocab.json"))
    tokenizer = find_tokenizer(str(path) if has_tokenizer else None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(mkdtemp(dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write to the cache {target.parent}: {error.strerror}; set PEFT_CBPT_CACHE"
        ) from error
    try:
        save_transformers(staging, build_model(checkpoint), checkpoint, tokenizer)
        try:
            os.rename(staging, target)
        except OSError:  # another run was first
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _fingerprint(path: Path) -> str:
    """SHA-256 of the contents, and in a folder of the names, of all that a conversion may read."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in READ_SUFFIXES)
    digest = hashlib.sha256()
    for file in files:
        digest.update(b"" if file == path else file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]
