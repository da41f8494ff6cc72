"""What `import peft_cbpt` gives, what it costs, and what an adapter needs to be loaded."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from peft import get_peft_model

import peft_cbpt
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.extras import EXTRAS, named_extras
from peft_cbpt.pocket.model import resolve_model

PACKAGE = Path(peft_cbpt.__file__).parent
FORBID = f"""
import socket, sys

def no_network(*arguments):
    raise AssertionError("the network was asked for")

socket.socket.connect = socket.getaddrinfo = no_network
sys.modules.update(dict.fromkeys({sorted(EXTRAS)!r}))  # importing one is a ModuleNotFoundError
"""


def process(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def run(code: str, *options: str) -> str:
    return process(code, *options).stdout.strip()


def test_every_public_name_is_there_for_type_checkers_and_at_run_time():
    (checked,) = [node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If)]
    for_type_checkers = {alias.name: node.module for node in checked.body for alias in node.names}
    assert for_type_checkers == peft_cbpt._LAZY
    assert set(peft_cbpt._LAZY) <= set(peft_cbpt.__all__) <= set(dir(peft_cbpt))
    for name in peft_cbpt.__all__:
        assert getattr(peft_cbpt, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'purfy'"):
        _ = peft_cbpt.purfy


def test_no_module_takes_the_place_of_a_public_name():
    """Importing `peft_cbpt.purify` would set the attribute `purify` of the package to the module."""
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not modules & set(peft_cbpt.__all__)


def test_the_import_is_quick_quiet_and_offline():
    libraries = "import torch, transformers, peft\nfrom transformers import CLIPModel\n"
    timed = "from time import process_time\nstart = process_time()\nimport peft_cbpt\nprint(process_time() - start)"
    assert float(run(FORBID + libraries + timed)) < 1
    run(FORBID + "import peft_cbpt", "-W", "error")


def test_an_adapter_is_loaded_and_run_with_four_packages(poisoned_clip, tmp_path):
    config = peft_cbpt.CBPTConfig(class_names=["dog", "cat"])
    get_peft_model(poisoned_clip.model, config).save_pretrained(tmp_path)
    load = f"""
import peft_cbpt, torch
from peft import PeftModel
from transformers import AutoModel
model = PeftModel.from_pretrained(AutoModel.from_pretrained({resolve_model("pocket:badnet")!r}), {str(tmp_path)!r})
print(tuple(model(pixel_values=torch.rand(3, 3, 48, 48)).logits_per_image.shape))
"""
    assert run(FORBID + load) == "(3, 2)"


NEEDS_EXTRA = {
    "purify": "import peft_cbpt; peft_cbpt.purify",
    "attacks": "from peft_cbpt.attacks.steganography import secret_to_bits; secret_to_bits(bytes(7))",
}


def test_a_missing_extra_is_named():
    """By Python, and by the command line."""
    tried = [f"try:\n    {code}\nexcept ValueError as error:\n    print(error)" for code in NEEDS_EXTRA.values()]
    command = "from peft_cbpt.cli import main\nprint(main(['purify', '--output_dir', 'nowhere']))"
    done = process("\n".join([FORBID, *tried, command]))
    *said, code = done.stdout.splitlines()
    assert code == "2" and "Traceback" not in done.stderr, done.stderr
    for extra, line in zip([*NEEDS_EXTRA, "purify"], [*said, done.stderr.strip()], strict=True):
        assert line.endswith(f"is missing: pip install 'peft-cbpt[{extra}]'")


def test_other_missing_modules_stay_what_they_are():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), named_extras():
        import no_such_module  # noqa: F401
    with pytest.raises(InputError, match="purify"), named_extras():
        raise ModuleNotFoundError("No module named 'datasets.features'", name="datasets.features")
