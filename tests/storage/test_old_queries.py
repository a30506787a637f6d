"""F31: every statement of the releases before is still understood by the schema of this one.

Of each migration the statements of the commit before it, as the last that knew the schema without it. They are prepared,
not run: a table, column, function or type that is gone, renamed or not convertible any more fails. What old workers do
on the new schema is tried by e2e/test_upgrade.
"""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from pathlib import Path

import asyncpg
import pytest

from tests.storage.driver import Driver, Postgres

ROOT = Path(__file__).parents[2]
QUERIES = "src/hookpost/storage/postgres/queries"
VERSIONS = "src/hookpost/storage/postgres/migrations/versions"
_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def releases_before() -> list[str]:
    """The commit before each migration but the first; none where the history is not there."""
    migrations = sorted(path.name for path in (ROOT / VERSIONS).glob("0*.py"))[1:]
    added = [git("log", "--diff-filter=A", "--format=%H", "--", f"{VERSIONS}/{name}").split() for name in migrations]
    return [commit for each in added if each and (commit := git("rev-parse", "--verify", "--quiet", f"{each[-1]}^"))]


def statements(commit: str) -> dict[str, str]:
    """By file and name."""
    found: dict[str, str] = {}
    archive = subprocess.run(["git", "archive", commit, QUERIES], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            if member.name.endswith(".sql") and (file := files.extractfile(member)) is not None:
                parts = _NAME.split(file.read().decode())
                named = zip(parts[1::2], parts[2::2], strict=True)
                found |= {f"{Path(member.name).stem}.{name}": body for name, body in named}
    return found


@pytest.mark.postgres
async def test_f31_the_statements_of_every_release_before_are_understood(driver: Driver) -> None:
    assert isinstance(driver, Postgres)
    releases = releases_before()
    if not releases:
        pytest.skip("the releases before are in the history, and this checkout has none: git fetch --unshallow --tags")
    connection = await driver.connect()
    tried: set[str] = set()
    failed: dict[str, str] = {}
    for commit in releases:
        for name, statement in statements(commit).items():
            if statement in tried:
                continue
            tried.add(statement)
            try:
                await connection.prepare(statement)
            except asyncpg.PostgresError as error:
                failed[f"{name} of {commit[:10]}"] = str(error)
    assert len(tried) > 100
    assert failed == {}
