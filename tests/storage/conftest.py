"""The drivers under test: each claim of the suite holds for all of them.

A driver is the store and what a test must do behind its back (see `driver.py`). A test that is about PostgreSQL itself
asks for ``sql`` too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.storage.driver import DRIVERS, Driver


@pytest.fixture(params=sorted(DRIVERS))
async def driver(request: pytest.FixtureRequest, database: str) -> AsyncIterator[Driver]:
    """A driver on an empty store of four shards (0 to 3) in the pool `default`."""
    opened = DRIVERS[request.param](database)
    yield opened
    await opened.close()
