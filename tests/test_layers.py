"""The architecture as a test: imports point down only, and a few names stay where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From top to bottom; rooms on one line do not know each other.
LAYERS = [
    {"recipes", "benchmarks", "__main__"},
    {"cli"},
    {"commands"},
    {"purification"},
    {"scanning"},
    {"purified"},
    {"reports"},
    {"hub"},
    {"training"},
    {"evaluation"},
    {"detection"},
    {"method"},
    {"features"},
    {"attacks"},
    {"photos"},
    {"data"},
    {"metrics"},
    {"pocket"},
    {"convert"},
    {"clip"},
    {"tuner"},
    {"common"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
# What a room may not use although it lies below or outside: a prefix of the dotted name.
FORBIDDEN = {
    "": ("torchvision", "pickle", "tests", "recipes"),
    "peft_cbpt": tuple(f"peft_cbpt.{room}" for room in RANK if room not in ("clip", "tuner", "common")),
    "method": ("peft_cbpt.data", "transformers.Trainer", "transformers.trainer"),
}
# The one file that may run code from a checkpoint, once the user has allowed it.
UNSAFE = Path("peft_cbpt/convert/unsafe.py")
PARSERS = ("argparse", "transformers.HfArgumentParser")


def room_of(file: Path) -> str:
    """The room of a path relative to the root; the package's own `__init__` is the room `peft_cbpt`."""
    if file.parts[0] in ("recipes", "benchmarks"):
        return file.parts[0]
    return "peft_cbpt" if file.name == "__init__.py" and len(file.parts) == 2 else Path(file.parts[1]).stem


def used_names(tree: ast.AST, file: Path) -> Iterator[tuple[int, str]]:
    """Every imported name, dotted and absolute, and every attribute taken from `import transformers`.

    The package's own `__init__` may tell type checkers of names that it imports when they are asked for.
    """
    lazy = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    told = {inner for node in lazy for inner in ast.walk(node)} if room_of(file) == "peft_cbpt" else set()
    for node in ast.walk(tree):
        if node in told:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = file.parts[: len(file.parts) - node.level] if node.level else ()
            module = ".".join((*package, *filter(None, [node.module])))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "transformers":
            yield node.lineno, f"transformers.{node.attr}"


def unsafe_call(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
    return name if name in ("eval", "exec", "torch.jit.load") or (name == "torch.load" and not safe) else None


def reason_against(room: str, name: str) -> str | None:
    def under(*prefixes: str) -> bool:
        return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)

    if under(*FORBIDDEN[""], *FORBIDDEN.get(room, ())) or (under("benchmarks") and room != "benchmarks"):
        return "is forbidden here"
    if under(*PARSERS) and room not in ("recipes", "benchmarks", "cli", "commands"):
        return "belongs to the command line"
    if not under("peft_cbpt") or room in ("peft_cbpt", "recipes", "benchmarks"):
        return None
    target = (name.split(".") + ["__init__"])[1]
    if target in (room, "__version__"):
        return None
    if target not in RANK:
        return "goes through the package's own __init__"
    return "points up" if RANK[target] <= RANK[room] else None


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted(
        [*(file for room in ("peft_cbpt", "recipes", "benchmarks") for file in root.glob(f"{room}/**/*.py"))]
    ):
        file = path.relative_to(root)
        room = room_of(file)
        if room not in RANK and room != "peft_cbpt":
            found.append(f"{file}: the room {room!r} is not in LAYERS")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(file))
        for line, name in used_names(tree, file):
            if reason := reason_against(room, name):
                found.append(f"{file}:{line}: {name} {reason}")
        for node in ast.walk(tree):
            if (call := unsafe_call(node)) and file != UNSAFE:
                found.append(f"{file}:{node.lineno}: {call}() is unsafe")
    return found


def test_the_tree_keeps_its_layers():
    assert (ROOT / "peft_cbpt/tuner/__init__.py").is_file()
    assert not (found := violations(ROOT)), "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("peft_cbpt/tuner/model.py", "def f():\n    from peft_cbpt.training import CBPTTrainer", "points up"),
        ("peft_cbpt/tuner/model.py", "from ..clip.pixels import normalise", "points up"),
        ("peft_cbpt/metrics/asr.py", "from .. import data", "points up"),
        ("peft_cbpt/hub.py", "from .reports import table", "points up"),
        ("peft_cbpt/clip/__init__.py", "import peft_cbpt", "own __init__"),
        ("peft_cbpt/__init__.py", "from .training import CBPTTrainer", "forbidden"),
        ("peft_cbpt/hub/card.py", "if TYPE_CHECKING:\n    from ..commands import purify", "points up"),
        ("peft_cbpt/method/losses.py", "from ..data import few_shot", "forbidden"),
        ("peft_cbpt/method/losses.py", "import transformers\ntransformers.Trainer", "forbidden"),
        ("peft_cbpt/commands/attack.py", "from recipes import purify", "forbidden"),
        ("peft_cbpt/data/imagenet.py", "import torchvision.transforms", "forbidden"),
        ("peft_cbpt/data/imagenet.py", "from pickle import loads", "forbidden"),
        ("peft_cbpt/data/imagenet.py", "from transformers import HfArgumentParser", "command line"),
        ("peft_cbpt/data/imagenet.py", "import torch\ntorch.load('x', weights_only=False)", "unsafe"),
        ("peft_cbpt/data/imagenet.py", "names = eval('[]')", "unsafe"),
        ("peft_cbpt/convert/convert.py", "import torch\ntorch.jit.load('x')", "unsafe"),
        ("peft_cbpt/helpers/text.py", "", "not in LAYERS"),
    ],
)
def test_a_violation_is_found(tmp_path, file, source, complaint):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    (found,) = violations(tmp_path)
    assert file in found and complaint in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("recipes/purify.py", "import argparse\nfrom peft_cbpt import CBPTConfig\nimport peft_cbpt.hub"),
        ("peft_cbpt/__init__.py", "from .tuner import CBPTConfig\n__version__ = '0'"),
        ("peft_cbpt/__init__.py", "if TYPE_CHECKING:\n    from .training import CBPTTrainer"),
        ("peft_cbpt/hub.py", "from . import __version__, common\nfrom .training.trainer import CBPTTrainer"),
        ("peft_cbpt/tuner/model.py", "from .config import CBPTConfig\nfrom ..common.errors import CBPTError"),
        ("peft_cbpt/convert/convert.py", "import torch\ntorch.load('x', weights_only=True).eval()"),
    ],
)
def test_what_is_allowed_passes(tmp_path, file, source):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert not violations(tmp_path)
