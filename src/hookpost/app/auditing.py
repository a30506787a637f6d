"""`hookpost audit verify`: every chain of the audit log, checked on the database, and where each ends, to be kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import UUID

from hookpost.app.config import ConfigError, Settings
from hookpost.app.keyring import make_vault
from hookpost.model import show_id
from hookpost.policy.audit import Anchor
from hookpost.storage.postgres.audit import Verified, verify
from hookpost.storage.postgres.vault import PLATFORM

_PLATFORM = "platform"


async def verify_all(settings: Settings, dsn: str, against: Path | None) -> Verified:
    """Verify all chains; ``against``: a file of ``save``. Raises ConfigError for one that is none."""
    return await verify(dsn, make_vault(settings), {} if against is None else _anchors(against))


def report(found: Verified) -> Iterator[str]:
    """What was found, a line each."""
    for chain, faults in found.faults.items():
        for fault in faults:
            yield f"BAD  {_shown(chain)}: {fault}"
    bad = len(found.faults)
    chains = len(found.heads.keys() | found.faults.keys())
    yield f"{found.rows} rows in {chains} chains; " + (
        "all are in order" if not bad else f"{bad} chains are not in order"
    )


def save(path: Path, found: Verified) -> None:
    """Where each chain ends. Chains with faults are left out: nothing is to be measured by them."""
    heads = {
        _shown(chain): {"seq": anchor.seq, "hash": anchor.hash.hex()}
        for chain, anchor in found.heads.items()
        if chain not in found.faults
    }
    path.write_text(json.dumps(heads, indent=2) + "\n", encoding="utf-8")


def _anchors(path: Path) -> Mapping[UUID, Anchor]:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return {_chain(name): Anchor(int(head["seq"]), bytes.fromhex(head["hash"])) for name, head in noted.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not what `hookpost audit verify --save` writes") from error


def _shown(chain: UUID) -> str:
    return _PLATFORM if chain == PLATFORM else show_id("ten", chain)


def _chain(name: str) -> UUID:
    return PLATFORM if name == _PLATFORM else UUID(name.removeprefix("ten_"))
