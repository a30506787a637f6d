"""The drivers under test: each claim of the suite holds for all of them.

A driver is the store and what a test must do behind its back (see `driver.py`). What is about PostgreSQL itself (its
locks, partitions, connections, what its types hold) is marked ``postgres`` and runs with that driver alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.storage.driver import DRIVERS, Driver


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every driver, or the one that a test is about."""
    if "driver" in metafunc.fixturenames:
        of_one = metafunc.definition.get_closest_marker("postgres") is not None
        metafunc.parametrize("driver", ["postgres"] if of_one else sorted(DRIVERS), indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str | None:
    """The DSN of a database, if the driver needs one. Not async: a server may have to be started first."""
    if request.node.callspec.params["driver"] != "postgres":
        return None
    dsn: str = request.getfixturevalue("database")
    return dsn


@pytest.fixture
async def driver(request: pytest.FixtureRequest, place: str | None) -> AsyncIterator[Driver]:
    """A driver on an empty store of four shards (0 to 3) in the pool `default`."""
    opened = DRIVERS[request.param](place)
    yield opened
    await opened.close()
