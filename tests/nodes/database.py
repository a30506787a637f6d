"""python -m tests.nodes.database FOLDER ADDRESS: a PostgreSQL that listens on an address, as on a host of its own.

Started in that host's namespace. It says `ready`, and stops when its standard input closes.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncpg

from hookpost.storage.postgres.embedded import EmbeddedPostgres


async def _open(dsn: str, address: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"alter system set listen_addresses = '{address}'")
    finally:
        await connection.close()


def main(folder: Path, address: str) -> None:
    """Until standard input closes."""
    embedded = EmbeddedPostgres(folder)
    try:
        asyncio.run(_open(embedded.start(), address))
        embedded.stop()
        with (folder / "postgres" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.72.0.0/16 trust\n")
        embedded.start()
        print("ready", flush=True)
        sys.stdin.read()
    finally:
        embedded.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
