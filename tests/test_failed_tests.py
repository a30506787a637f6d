"""What CI runs again: one to three tests that failed, and never when it is not known which."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from failed_tests import main


@pytest.mark.parametrize(
    ("noted", "code"), [(None, 1), ("{}", 1), ('{"a": true, "b": true}', 0), ('{"a": 1, "b": 1, "c": 1}', 1)]
)
def test_few_failed_tests_are_named_and_anything_else_is_a_failure(
    noted: str | None, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "lastfailed"
    if noted is not None:
        notes.write_text(noted)
    assert main(2, notes) == code
    assert capsys.readouterr().out.split() == ([] if code else ["a", "b"])
