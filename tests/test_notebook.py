"""docs/quickstart.ipynb from top to bottom, and the five lines of docs/index.md: minutes of work."""

import re
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
FIVE_MINUTES = 300
pytestmark = pytest.mark.usefixtures("all_triggers")
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")


def texts(notebook) -> str:
    """Everything that the cells printed."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def pictures(notebook) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_stored_outputs_are_of_an_unbroken_run_and_small():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert "backdoored" in texts(notebook) and pictures(notebook) == 2
    assert NOTEBOOK.stat().st_size < 400_000
    assert not re.search(r"/home|/root|/tmp|/work|Traceback", NOTEBOOK.read_text())


@pytest.mark.long
def test_the_notebook_runs_in_five_minutes(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    start = time.perf_counter()
    nbclient.NotebookClient(notebook, timeout=FIVE_MINUTES, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert time.perf_counter() - start < FIVE_MINUTES
    printed = texts(notebook)
    assert "verdict: backdoored" in printed and "banana" in printed
    before, after = (float(share) for share in re.findall(r"attack success: (\d+)%", printed))
    assert before > 90 and after < 5
    assert pictures(notebook) == 2


@pytest.mark.long
def test_the_five_lines_of_the_landing_page(tmp_path, monkeypatch, capsys):
    """index.md as it is."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), flags=re.S)
    names: dict = {}
    exec(compile(code, "docs/index.md", "exec"), names)
    assert names["verdict"].verdict == "backdoored" and "backdoored" in capsys.readouterr().out
    results = names["purified"].results
    figures = [results[moment]["attacks"]["badnet"]["attack_success_rate"] for moment in ("before", "after")]
    assert figures[0] > 0.9 and figures[1] < 0.05
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
