import json

import pytest

from benchmarks import fuzz_config
from benchmarks.fuzz_config import RESULT, Case, draw_case, fuzz, half_written, run_case


def test_a_slice_of_random_configs_ends_well():
    found = fuzz(1, range(100))
    assert not found["faults"], found["faults"]
    ends = {end for count in found["ends"].values() for end in count}
    assert {"refused", "plan", "run"} <= ends, "the slice does not reach what it should"


def test_cases_are_those_of_the_seed():
    assert draw_case(0, 7) == draw_case(0, 7)
    assert len({draw_case(0, number).config for number in range(50)} | {draw_case(1, 7).config}) > 30


def test_faults_are_found(monkeypatch):
    monkeypatch.setattr(fuzz_config, "cli", lambda argv: 1 // 0)
    end, said = run_case(Case("purify both", b"a: 1", ()))
    assert end == "fault" and "ZeroDivisionError" in said
    monkeypatch.setattr(fuzz_config, "cli", lambda argv: 2)
    assert run_case(Case("purify both", b"a: 1", ()))[0] == "fault", "an exit code without a line"


@pytest.mark.parametrize("name, content", [("results.json", "{"), (".x.incomplete", ""), ("a.safetensors", "cut")])
def test_half_written_files_are_found(tmp_path, name, content):
    (tmp_path / "out").mkdir()
    assert not half_written(tmp_path)
    (tmp_path / "out" / name).write_text(content)
    assert name in half_written(tmp_path)


def test_the_stored_result_has_no_traceback_and_what_it_found_is_mended():
    stored = json.loads(RESULT.read_text())
    ends = [count for command in stored["ends"].values() for count in command.items()]
    assert stored["runs"] >= 2000 and sum(count for _, count in ends) == stored["runs"] and stored["commit"]
    assert not {"fault", "partial"} & {end for end, _ in ends}
    for found in stored["faults"]:
        assert run_case(draw_case(stored["seed"], found["number"]))[0] == "refused", found
