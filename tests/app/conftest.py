"""Data directories for the embedded PostgreSQL, cleaned up whatever a test leaves running in them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hookpost.storage.postgres.embedded import EmbeddedPostgres


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the database's user may traverse: pytest's own are private and should stay so."""
    path = Path(tempfile.mkdtemp(prefix="hookpost-test-")).resolve()
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def data_dir(place: Path) -> Iterator[Path]:
    """The data directory of a test; it does not exist yet. What runs in it at the end is stopped."""
    path = place / "data"
    yield path
    if (path / "postgres" / "postmaster.pid").exists():
        leftover = EmbeddedPostgres(path)
        leftover.start()
        leftover.stop()
