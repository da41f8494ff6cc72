import pytest

from benchmarks.kill_and_resume import compare
from tests.fresh import LOADED


@pytest.mark.parametrize("target", ["universal", "runner_up"])
def test_a_killed_run_ends_with_the_adapter_of_an_unbroken_one(tmp_path, target):
    """To 1e-6."""
    result = compare(tmp_path, target, epochs=6, kills=1, longest_wait=0.3, seed=0, processes=LOADED)
    assert len(result["kills"]) >= 1
    assert result["largest_context_difference"] <= 1e-6
