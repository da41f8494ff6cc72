import importlib.util
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

APP = Path(__file__).parents[2] / "app" / "app.py"


@pytest.fixture(scope="session")
def app():
    """The module, which no package holds, since a Space starts it by its file."""
    pytest.importorskip("gradio", reason="no gradio here: pip install 'peft-cbpt[app]'")
    spec = importlib.util.spec_from_file_location("peft_cbpt_app", APP)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradio's own
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shipped(app):
    """The run that lies beside the app: what `main` opens."""
    results = app.read_run(app.SHIPPED)
    return SimpleNamespace(folder=app.SHIPPED, results=results, run=app.open_run(app.SHIPPED, results))
