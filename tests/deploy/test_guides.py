"""What the guides name is there: settings by their short names, links and the headings they point at, files, targets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hookpost.app.config import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md"))
)
# Decisions and changes tell of what was so at their time.
GUIDES = [page for page in PAGES if not page.startswith("docs/adr/") and page != "CHANGELOG.md"]
# Variables and words of others.
OTHERS = re.compile(
    r"(AWS|AZURE|OTEL|GOOGLE|PYTEST|KAFKA)_\w*|WHOLE_TESTS|FUZZ_SECONDS|\w+_…|[A-Z]+FUNCTION|M_\w+|CURL\w+"
)


def prose(page: str) -> str:
    """The page without its blocks of commands and code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(page: str) -> set[str]:
    """The anchors that a page has, as they are made of its headings."""
    found = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def links(page: str) -> Iterator[tuple[str, str]]:
    """File and anchor of each link that stays inside."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page if not path else str((ROOT / page).parent.joinpath(path).resolve().relative_to(ROOT))), anchor


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_its_heading(page: str) -> None:
    for path, anchor in links(page):
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in headings(path), f"{path}#{anchor}"


@pytest.mark.parametrize("page", GUIDES)
def test_every_setting_is_one_also_where_it_is_named_without_its_prefix(page: str) -> None:
    known = {name.upper() for name in Settings.model_fields}
    words = re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9…]+)+)(?:=[^`]*)?`", prose(page))
    named = {word.removeprefix("HOOKPOST_") for word in words}
    assert sorted(name for name in named if name not in known and not OTHERS.fullmatch(name)) == []


@pytest.mark.parametrize("page", GUIDES)
def test_every_file_and_folder_that_is_named_is_there(page: str) -> None:
    """`deploy/…`, `tests/…`, `src/…`; tests are named from the folder of the tests, too."""
    named = re.findall(r"`((?:deploy|docs|tests|src|bench|scripts|examples|e2e)/[\w./-]+)`", prose(page))
    places = ("{}", "{}.py", "tests/{}.py")
    assert [path for path in named if not any((ROOT / place.format(path)).exists() for place in places)] == []


def targets() -> set[str]:
    """What can be made."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", GUIDES)
def test_every_target_of_make_that_is_named_is_there(page: str) -> None:
    assert sorted(set(re.findall(r"`make ([a-z-]+)", prose(page))) - targets()) == []


@pytest.mark.parametrize("script", [".ci/run", ".ci/nightly"])
def test_every_target_of_make_that_ci_runs_is_there(script: str) -> None:
    named = set(re.findall(r"make --no-print-directory ([a-z-]+)", (ROOT / script).read_text(encoding="utf-8")))
    assert named
    assert sorted(named - targets()) == []
