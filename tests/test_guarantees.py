"""docs/guarantees.md names every invariant (I1–I25) and fault (F1–F45) once, with tests that exist and carry the id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "guarantees.md"
IDS = [*(f"I{n}" for n in range(1, 26)), *(f"F{n}" for n in range(1, 46))]
# A row without a test says why there is none, in as many words at least.
WHY_NOT_WORDS = 6
# `folder/file`, `folder/file::test_name` or `folder/file::test_begin_…`, under tests/.
_NAMED = re.compile(r"`((?:[a-z0-9_]+/)*[a-z0-9_]+)(?:::(test_\w+)(…?))?`")


def rows() -> dict[str, list[str]]:
    """The columns behind the id, of each row of the two tables; fails for an id that stands there twice."""
    found: dict[str, list[str]] = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| ([IF]\d+)\b", line):
            assert match[1] not in found, f"{match[1]} stands there twice"
            found[match[1]] = line.strip("| ").split(" | ")
    return found


def named(row: list[str]) -> Iterator[tuple[str, str]]:
    """The tests that a row names: what is under tests/, and how the name of the function begins."""
    for path, function, more in _NAMED.findall(row[-1]):
        file = TESTS / f"{path}.py"
        if file.exists() or (TESTS / path).is_dir() or path.rpartition("/")[2].startswith("test_"):
            yield path, function if more else f"{function}(" if function else ""


def source(path: str) -> str:
    """The text of a file or of all files of a folder."""
    folder = TESTS / path
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [TESTS / f"{path}.py"]
    return "".join(file.read_text(encoding="utf-8") for file in files)


def test_every_invariant_and_fault_has_its_row() -> None:
    assert [each for each in IDS if each not in rows()] == []


@pytest.mark.parametrize("name", IDS)
def test_what_a_row_names_exists_and_carries_its_id(name: str) -> None:
    row, carried = rows()[name], re.compile(rf"\b{name}\b|_{name.lower()}_|\b{name.lower()}_")
    tests = list(named(row))
    if not tests:
        assert len(row[-1].split()) >= WHY_NOT_WORDS, "a row names a test or says why there is none"
        return
    for path, function in tests:
        assert (TESTS / path).is_dir() or (TESTS / f"{path}.py").exists(), f"there is no tests/{path}.py"
        assert not function or f"def {function}" in source(path), f"no {function} in tests/{path}.py"
    assert any(carried.search(source(path)) for path, _ in tests), f"none of {tests} says {name}"
