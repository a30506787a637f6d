"""Connections to PostgreSQL: one pool a process, times as Unix seconds, errors as the contract's.

Timestamps cross this border as floats and days as integers: a delivery touches nine of them, and datetime objects cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from hookpost.storage.contract import DataRejected, StoreUnavailable

# PostgreSQL counts microseconds (and days) from 2000-01-01T00:00Z.
EPOCH_US = 946_684_800_000_000
INFINITY_US = 2**63 - 1
# A statement of the API or a worker that runs longer is stuck: better an error than a pile of them.
STATEMENT_TIMEOUT_S = 30.0
# Waiting longer for a connection means that the store does not keep up.
ACQUIRE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
# Connections kept beside the pool between two uses: lending one takes the pool two tasks and 90 µs of CPU, more than a
# short statement takes. What is beyond these goes back to the pool, which closes it when it is not used.
AT_HAND_MAX = 4
# A process that is frozen inside a settle keeps the locks of its shards for so long: less than a lease.
IDLE_TRANSACTION = "10s"
# asyncpg raises these for values it cannot encode, besides its own DataError.
_ENCODING_ERRORS = (asyncpg.DataError, ValueError, TypeError, OverflowError)
# SQLSTATE classes that blame the data: its form, a constraint, a limit of the program (a key too long for its index).
_DATA_CLASSES = ("22", "23", "54")
_CHECK_VIOLATION = "23514"


def _encode_time(moment: float) -> tuple[int]:
    return (INFINITY_US,) if moment == float("inf") else (round(moment * 1e6) - EPOCH_US,)


def _decode_time(value: tuple[int]) -> float:
    return float("inf") if value[0] == INFINITY_US else (value[0] + EPOCH_US) / 1e6


async def prepare(connection: Any) -> None:
    """Make a fresh connection speak our types."""
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", format="tuple", encoder=_encode_time, decoder=_decode_time
    )
    await connection.set_type_codec(
        "date", schema="pg_catalog", format="tuple", encoder=lambda day: (day,), decoder=lambda value: value[0]
    )


async def _keep(connection: Any) -> None:
    """We set nothing for a session, and a round trip for each use costs; only a transaction left open is ended."""
    if connection.is_in_transaction():
        await connection.reset()


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn the driver's errors into the contract's, saying what was being done."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if _blames_the_data(error):
            raise DataRejected(f"{doing}: {error}") from error
        raise StoreUnavailable(f"{doing}: {error}") from error
    except _ENCODING_ERRORS as error:
        raise DataRejected(f"{doing}: {error}") from error
    except (TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise StoreUnavailable(f"{doing}: {type(error).__name__} {error}") from error


@asynccontextmanager
async def connected(dsn: str, doing: str) -> AsyncIterator[Any]:
    """A connection of a command's own. Raises StoreUnavailable when it cannot be made, or breaks."""
    with translated(doing):
        connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, server_settings={"timezone": "UTC"})
        try:
            await prepare(connection)
            yield connection
        finally:
            await connection.close()


def _blames_the_data(error: Any) -> bool:
    """A missing partition is a check violation too, the one that names no constraint (its text may be translated)."""
    missing_partition = error.sqlstate == _CHECK_VIOLATION and error.constraint_name is None
    return (error.sqlstate or "").startswith(_DATA_CLASSES) and not missing_partition


class Connections:
    """The pool of one process."""

    def __init__(self, dsn: str, *, application: str, size_min: int = 1, size_max: int = 8) -> None:
        self._dsn = dsn
        self._application = application
        self._size_min = size_min
        self._size_max = size_max
        self._pool: Any = None
        # Lent by the pool and not in use.
        self._at_hand: list[Any] = []
        # Whose turn it is to have one. The pool's own queue puts whoever was woken but found a newcomer quicker
        # behind all others: of 256 look-ups at once some took a second.
        self._turns = asyncio.Semaphore(size_max)
        self._waiting = 0

    async def open(self) -> None:
        """Connect; raises StoreUnavailable."""
        try:
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=self._size_min,
                max_size=self._size_max,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=STATEMENT_TIMEOUT_S,
                init=prepare,
                reset=_keep,
                server_settings=self._server_settings(),
            )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
            raise StoreUnavailable(f"connect: {type(error).__name__} {error}") from error

    def _server_settings(self) -> dict[str, str]:
        return {
            "application_name": self._application,
            "timezone": "UTC",
            "idle_in_transaction_session_timeout": IDLE_TRANSACTION,
            # So does one whose machine is gone in the middle of a COPY, which is not idle: the server finds out by TCP.
            "tcp_keepalives_idle": "5",
            "tcp_keepalives_interval": "2",
            "tcp_keepalives_count": "3",
            "tcp_user_timeout": "10s",
            # Generic plans prune partitions when they run; planning anew for each call would cost more than the call.
            "plan_cache_mode": "force_generic_plan",
            "jit": "off",
        }

    async def close(self) -> None:
        """Close all connections; those in use are cut after a moment."""
        pool, self._pool = self._pool, None
        at_hand, self._at_hand = self._at_hand, []
        if pool is not None:
            try:
                async with asyncio.timeout(2.0):
                    for connection in at_hand:
                        await pool.release(connection)
                    await pool.close()
            except (TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                pool.terminate()

    @asynccontextmanager
    async def use(self, doing: str) -> AsyncIterator[Any]:
        """A connection for a few statements; errors come out as the contract's."""
        with translated(doing):
            pool = self._pool
            if pool is None:
                raise StoreUnavailable(f"{doing}: the store is closed")
            until = asyncio.get_running_loop().time() + ACQUIRE_TIMEOUT_S
            await self._wait(until)
            try:
                connection = await self._take(pool, until)
                try:
                    yield connection
                except BaseException:
                    # Whatever the server may still be doing for it, the pool sees to.
                    await pool.release(connection)
                    raise
                await self._put(pool, connection)
            finally:
                self._turns.release()

    async def _wait(self, until: float) -> None:
        """Until it is our turn. Raises TimeoutError if that is later than ``until`` (the loop's time)."""
        if not self._turns.locked():
            await self._turns.acquire()
            return
        self._waiting += 1
        try:
            async with asyncio.timeout_at(until):
                await self._turns.acquire()
        finally:
            self._waiting -= 1

    async def _take(self, pool: Any, until: float) -> Any:
        while self._at_hand:
            connection = self._at_hand.pop()
            if not connection.is_closed():
                return connection
            await pool.release(connection)
        return await pool.acquire(timeout=until - asyncio.get_running_loop().time())

    async def _put(self, pool: Any, connection: Any) -> None:
        """Keep it at hand, for whoever waits at least, unless it is not as good as a fresh one."""
        good = not (connection.is_closed() or connection.is_in_transaction())
        if good and pool is self._pool and (self._waiting or len(self._at_hand) < AT_HAND_MAX):
            self._at_hand.append(connection)
        else:
            await pool.release(connection)

    async def connect_alone(self, doing: str, **settings: str) -> Any:
        """A connection outside of the pool, for what needs a session of its own, with these settings for it.

        They are set by a statement: as parameters of the start a pooler refuses them, or is told to ignore them, and a
        maintenance without its lock_timeout stands in everybody's way.
        """
        with translated(doing):
            connection = await asyncpg.connect(
                self._dsn,
                timeout=CONNECT_TIMEOUT_S,
                server_settings={"application_name": f"{self._application} {doing}", "timezone": "UTC"},
            )
            try:
                for name, value in settings.items():
                    await connection.execute("select set_config($1, $2, false)", name, value)
            except BaseException:
                connection.terminate()
                raise
            return connection
