"""The SQL of the store: files of statements, each under a line `-- name: …` and a line saying what it is for."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


def load(file: str) -> dict[str, str]:
    """The statements of one file, by name."""
    parts = _NAME.split(Path(__file__).with_name(f"{file}.sql").read_text(encoding="utf-8"))
    names, bodies = parts[1::2], parts[2::2]
    assert len(set(names)) == len(names), f"{file}.sql names a statement twice"
    return {name: body.strip() for name, body in zip(names, bodies, strict=True)}
