"""F15 on a real file system whose disk fails."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.torture.fsync import torture

pytestmark = pytest.mark.disk

WHOLE = bool(os.environ.get("WHOLE_TESTS"))  # `make whole`: it takes most of a minute
CAPABLE = os.geteuid() == 0 and Path("/dev/loop-control").exists() and shutil.which("mkfs.ext4") is not None


@pytest.fixture
def folder() -> Iterator[Path]:
    """PostgreSQL runs as somebody else, to whom pytest's own folders are closed."""
    made = Path(tempfile.mkdtemp(prefix="hookpost-fsync-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.skipif(not WHOLE, reason="takes most of a minute: make whole")
def test_f15_when_fsync_fails_nothing_is_acknowledged_that_a_start_does_not_find(folder: Path) -> None:
    require(CAPABLE, "no loop devices (Linux, root, mkfs.ext4)")
    found = torture(folder)
    assert found.panics, "PostgreSQL did not end itself"
    assert found.accepted > 0
    assert found.lost == 0
