"""SECURITY.md names a test for what it promises."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_test_that_security_md_names_is_there() -> None:
    named = set(re.findall(r"`(tests/[^`]*)`", (ROOT / "SECURITY.md").read_text()))
    assert len(named) > 15
    assert not [path for path in named if not (ROOT / path).exists()]
