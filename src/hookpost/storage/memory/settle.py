"""Settles in the store in memory: nothing is written before all of it is known to be good."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from hookpost.engine.work import ATTEMPT_COLUMNS, Attempt, BacklogChange, DeadLetter, ShardSettle
from hookpost.model import OperationalType
from hookpost.policy.alerts import Notice
from hookpost.storage.contract import DataRejected, FenceLost
from hookpost.storage.memory.ingest import refuse_text
from hookpost.storage.memory.tables import Database, Letter, ProgressRow, at

_COLUMN = {name: index for index, name in enumerate(ATTEMPT_COLUMNS)}
_TEXTS = [_COLUMN[name] for name in ("worker", "outcome", "address", "protocol", "error_code")]
_TIMES = [_COLUMN[name] for name in ("scheduled_at", "started_at", "finished_at")]
_NUMBERS = [_COLUMN[name] for name in ("latency_ms", "dns_ms", "connect_ms", "tls_ms", "first_byte_ms")]
_OUTCOME, _STATUS, _CODE = (_COLUMN[name] for name in ("outcome", "http_status", "error_code"))
_OUTCOMES = frozenset({"delivered", "retry", "dead"})
_SMALL, _INT = 2**15, 2**31
# What an attempt that is refused is stored without.
_CUT = {
    "http_status": None, "error_code": "internal_error", "response_hash": None, "response_head": b"", "address": "",
    "protocol": "", "started_at": 0.0, "finished_at": 0.0, "latency_ms": 0, "dns_ms": 0, "connect_ms": 0, "tls_ms": 0,
    "first_byte_ms": 0,
}  # fmt: skip


class SettleTables:
    """Implements what WorkerStore says of settles."""

    _db: Database
    _pause: Callable[[], Awaitable[None]]

    async def settle(self, parts: Sequence[ShardSettle]) -> None:
        await self._pause()
        if self._fenced(parts):
            for part in parts:
                _refuse(part)
            self._write(parts)

    async def settle_by_row(self, parts: Sequence[ShardSettle]) -> int:
        await self._pause()
        if not self._fenced(parts):
            return 0
        cut = sum(_cut(part) for part in parts)
        self._write(parts)
        return cut

    async def settled(self, part: ShardSettle) -> bool:
        await self._pause()
        return self._db.settled(part)

    def _fenced(self, parts: Sequence[ShardSettle]) -> bool:
        """Is it to be written? Not if it was before; raises FenceLost."""
        fences = {shard.shard: shard.fence for shard in self._db.shards.values()}
        lost = [part.shard for part in parts if fences.get(part.shard) != part.fence]
        if lost:
            raise FenceLost(lost)
        return not self._db.settled(parts[0])

    def _write(self, parts: Sequence[ShardSettle]) -> None:
        db, today = self._db, self._db.today()
        for part in parts:
            row = ProgressRow(today, part.shard, part.settle_no, part.fence, part.progress, part.clean)
            db.shards[part.shard].progress.append(row)
            db.attempts.setdefault(today, []).extend(part.attempts)
            for pair in part.revived:
                letter = db.dead.get(pair)
                # What blocks its lane in another shard does not lose its place there.
                if letter is not None and (letter.shard == part.shard or not db.blocks(letter)):
                    del db.dead[pair]
        self._bury(parts)
        for part in parts:
            for endpoint_id in part.dropped_lanes:
                db.backlog.pop((part.shard, endpoint_id), None)
            for endpoint_id, position in part.deletes:
                db.backlog.get((part.shard, endpoint_id), {}).pop(position, None)
            for change in part.upserts.values():
                db.backlog.setdefault((part.shard, change.endpoint_id), {})[change.position] = _rounded(change)
            db.outbox += part.notices

    def _bury(self, parts: Sequence[ShardSettle]) -> None:
        """Of several deaths of one delivery the latest generation's; one notice for the deaths of an endpoint."""
        letters = sorted(
            ((letter.generation, part.shard, letter) for part in parts for letter in part.dead), key=_first
        )
        latest = {(letter.event_id, letter.endpoint_id): (shard, letter) for _, shard, letter in letters}
        died: dict[tuple[UUID, UUID], list[UUID]] = {}
        for key, (shard, letter) in latest.items():
            known = self._db.dead.get(key)
            type_ = known.letter.type if known else letter.type or self._type(letter.event_id)
            letter = replace(letter, type=type_, died_at=at(letter.died_at))
            self._db.dead[key] = Letter(shard, letter)
            if type_ not in frozenset(OperationalType):
                died.setdefault((letter.tenant_id, letter.endpoint_id), []).append(letter.event_id)
        for (tenant_id, endpoint_id), ids in died.items():
            told = (OperationalType.DELIVERY_DEAD, tenant_id, endpoint_id, self._db.now())
            self._db.outbox.append(Notice(*told, deaths=len(ids), event_ids=tuple(ids)))

    def _type(self, event_id: UUID) -> str:
        original = self._db.original(event_id)
        return "" if original is None else original.type


def _first(row: tuple[int, int, DeadLetter]) -> int:
    return row[0]


def _rounded(change: BacklogChange) -> BacklogChange:
    return replace(
        change,
        due_at=at(change.due_at),
        deadline=at(change.deadline),
        created_at=at(change.created_at),
        stored_at=at(change.stored_at),
    )


# ---- what is refused ------------------------------------------------------------------------------------------------


def _refuse(part: ShardSettle) -> None:
    for attempt in part.attempts:
        _refuse_attempt(attempt)
    for change in part.upserts.values():
        _refuse_note(change)
    for letter in part.dead:
        _refuse_note(letter)


def _refuse_attempt(attempt: Attempt) -> None:
    for text in _TEXTS:
        refuse_text(attempt[text] or "")
    finite = all(math.isfinite(attempt[time]) for time in _TIMES)
    in_range = all(-_INT <= attempt[number] < _INT for number in _NUMBERS)
    if not finite or not in_range or attempt[_OUTCOME] not in _OUTCOMES or (attempt[_STATUS] or 0) >= _SMALL:
        raise DataRejected("a value of an attempt is out of range")


def _refuse_note(row: BacklogChange | DeadLetter) -> None:
    refuse_text(row.last_error_code or "")
    if (row.last_http_status or 0) >= _SMALL:
        raise DataRejected("a status is out of range")


def _cut(part: ShardSettle) -> int:
    """Leave out what is refused; returns how many rows that concerned. The history may lack an attempt rather than that
    a shard stands still; a delivery must never get lost."""
    cut, attempts = 0, []
    for attempt in part.attempts:
        row = attempt
        if not _accepts(_refuse_attempt, attempt):
            cut += 1
            row = tuple(_CUT.get(name, value) for name, value in zip(ATTEMPT_COLUMNS, attempt, strict=True))
        if _accepts(_refuse_attempt, row):
            attempts.append(row)
    part.attempts = attempts
    for key, change in part.upserts.items():
        if not _accepts(_refuse_note, change):
            cut += 1
            part.upserts[key] = replace(change, last_http_status=None, last_error_code=None)
    for index, letter in enumerate(part.dead):
        if not _accepts(_refuse_note, letter):
            cut += 1
            part.dead[index] = replace(letter, last_http_status=None, last_error_code=None)
    return cut


def _accepts(refuse: Callable[[Any], None], row: Any) -> bool:
    try:
        refuse(row)
    except DataRejected:
        return False
    return True
