import pytest

from peft_cbpt.common.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (AssertionError("  \n"), "AssertionError"),
        (RuntimeError("\n here"), "here"),
    ],
)
def test_every_error_has_a_first_line(error, line):
    assert first_line(error) == line
