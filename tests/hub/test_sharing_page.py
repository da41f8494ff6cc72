"""docs/hub.md: its snippets in their order, and its pushes, with the Hub of the tests."""

import re
import shlex
from pathlib import Path

import peft_cbpt
from peft_cbpt.cli import main
from peft_cbpt.pocket.model import resolve_model
from tests.hub.conftest import BASE_ID, ROOT

PAGE = (ROOT / "docs" / "hub.md").read_text().replace("my/clip", BASE_ID).replace("my/", "ada/")
PUSHES = re.findall(r"^peft-cbpt (push .*)$", PAGE, flags=re.M)
PUSH, LOAD, STRICT = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


def test_what_the_page_pushes_can_be_loaded_as_it_says(hub, fresh, adapter, monkeypatch):
    hub.upload(BASE_ID, Path(resolve_model("pocket:badnet")))
    monkeypatch.chdir(adapter.parent)
    adapter.rename("out")
    exec(compile(PUSH, "docs/hub.md", "exec"), {"peft_cbpt": peft_cbpt})
    assert [main(shlex.split(line)) for line in PUSHES] == [0, 0, 0]
    assert hub.files("ada/purified-clip", "stronger") and hub.files("ada/secret-clip")
    script = f'{LOAD}\nadapter = "ada/purified-clip"\n{STRICT}\nprint(len(model.class_names))'
    assert fresh("-c", script).strip() == "6"
