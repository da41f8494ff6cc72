"""Image files in folders as people have them: what is no image is counted and named, never left out without a word."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from PIL import Image

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.tars import image_suffixes

logger = logging.getLogger(__name__)
SPLIT_WORDS = ("train", "test", "val", "validation", "dev")
_OF_SYSTEMS = ("__MACOSX", "Thumbs.db", "desktop.ini")


def is_hidden(path: PurePath) -> bool:
    """Whether a path, or a folder in it, is one that systems and editors put beside people's files."""
    return any(part.startswith(".") or part in _OF_SYSTEMS for part in path.parts)


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, sorted, whatever their suffix; a warning counts the other files by theirs."""
    images: list[Path] = []
    others: list[Path] = []
    for file in sorted(folder.rglob("*")):
        if not is_hidden(file.relative_to(folder)) and file.is_file():
            (images if _is_image(file) else others).append(file)
    if others and images:
        logger.warning("%s: left out %s, which hold no image that can be read", folder, _listed(others, folder))
    return images


def files_by_class(folder: Path, split: str) -> list[tuple[Path, str]]:
    """The images in class folders of `folder / split`, or of `folder`, each with its class folder's name.

    A class has the images of its sub-folders, too. Where no folder has images of its own, the folders that do are the
    classes, as `datasets` has it.

    Raises:
        InputError: if there are no class folders or no such split, a class is empty, or two folders have one name.
    """
    root = folder / split if (folder / split).is_dir() else folder
    images = [(file, file.relative_to(root)) for file in image_files(root)]
    inside = [(file, path) for file, path in images if len(path.parts) > 1]
    if len(inside) < len(images):
        loose = [file for file, path in images if len(path.parts) == 1]
        logger.warning("%s: left out %s, which are in no class folder", root, _listed(loose, root))
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(PurePath(path.name))]
    if not folders:
        raise InputError(
            f"{root} holds no class folders but {_contents(root)}: put the images of each class into a folder of its "
            "name, or list them in a metadata.csv (file_name,label)"
        )
    with_images = {path.parts[0] for _, path in inside}
    if with_images and not any(len(path.parts) == 2 for _, path in inside):
        if root == folder and any(one.name.startswith(SPLIT_WORDS) for one in folders):
            raise InputError(f"{folder} has no split {split!r} but {', '.join(one.name for one in folders)}")
        return _innermost(root, inside)
    for one in folders:
        if one.name not in with_images:
            raise InputError(
                f"the class folder {one} is empty of images that can be read, it has {_contents(one)}: add images or "
                "remove it"
            )
    return [(file, path.parts[0]) for file, path in inside]


def _innermost(root: Path, inside: Sequence[tuple[Path, PurePath]]) -> list[tuple[Path, str]]:
    folders = sorted({path.parent for _, path in inside})
    count = Counter(one.name for one in folders)
    shown = ", ".join(map(str, folders[:5]))
    if twice := [one for one in folders if count[one.name] > 1]:
        raise InputError(
            f"{root} holds folders of folders ({shown} ...), and {twice[0].name!r} is there more than once: put the "
            "images of each class into one folder of its name"
        )
    logger.warning("%s: classes are the innermost folders, %s%s", root, shown, " ..." if len(folders) > 5 else "")
    return [(file, path.parent.name) for file, path in inside]


def _is_image(file: Path) -> bool:
    if file.suffix.lower() in image_suffixes():
        return True
    try:
        with Image.open(file):
            return True
    except Exception:  # Pillow raises many kinds for what it does not know
        return False


def _listed(files: Sequence[Path], folder: Path) -> str:
    """`3 files (2 .heic: cat/1.heic ..., 1 .csv: a.csv)`."""
    counts = Counter(file.suffix.lower() or "without suffix" for file in files)
    first = {file.suffix.lower() or "without suffix": file for file in reversed(files)}
    kinds = [
        f"{count} {kind}: {first[kind].relative_to(folder).as_posix()}{' ...' if count > 1 else ''}"
        for kind, count in counts.most_common()
    ]
    return f"{len(files)} file{'s' if len(files) > 1 else ''} ({', '.join(kinds)})"


def _contents(folder: Path) -> str:
    files = [file for file in sorted(folder.rglob("*")) if not is_hidden(file.relative_to(folder)) and file.is_file()]
    return _listed(files, folder) if files else "nothing"
