"""The worker's side of the store in memory: leases, journal, backlog, configuration, breakers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar
from uuid import UUID

from hookpost.engine.lanes import NEVER
from hookpost.engine.work import BacklogChange, BacklogRow, Fetch, JournalRow, Kind, LaneSummary, Takeover, Wanted
from hookpost.model import HEALTHY, Endpoint, EndpointStatus, Health, OperationalType, Tenant
from hookpost.policy.alerts import Notice
from hookpost.policy.breaker import STEP_S, BreakerRecord, BreakerState, Probe
from hookpost.storage.contract import RECOVERED_S, Claimed, Survey
from hookpost.storage.endpoints import EndpointDefaults
from hookpost.storage.memory.journal import Event
from hookpost.storage.memory.tables import Breaker, Database, Node, Shard, at
from hookpost.storage.rings import Rings

# As in PostgreSQL: clocks may differ by a little.
BREAKER_NEWER_S = 1.0

_Row = TypeVar("_Row", JournalRow, BacklogRow)


class WorkerTables:
    """Implements what WorkerStore says of everything but settles."""

    _db: Database
    _pause: Callable[[], Awaitable[None]]
    _defaults: EndpointDefaults
    _longest_s: float
    _rings: Rings

    # ---- leases -------------------------------------------------------------------------------------------------

    async def register(self, node_id: UUID, *, pool: str, name: str, lease_s: float) -> float:
        await self._pause()
        now, known = self._db.now(), self._db.nodes.get(node_id)
        node = self._db.nodes[node_id] = known or Node(pool, name, 0.0, 0.0)
        _extend(node, now + lease_s)
        return now

    async def renew(self, node_id: UUID, *, lease_s: float) -> float | None:
        await self._pause()
        node, now = self._db.nodes.get(node_id), self._db.now()
        if node is None:
            return None
        _extend(node, now + lease_s)
        return now

    async def survey(self, pool: str) -> Survey:
        await self._pause()
        nodes = tuple(sorted(n for n, node in self._db.nodes.items() if node.pool == pool and self._lives(n)))
        await self._pause()
        shards = (shard for shard in self._db.shards.values() if shard.pool == pool)
        owners = {s.shard: s.owner if s.owner is not None and self._lives(s.owner) else None for s in shards}
        return Survey(nodes, owners, self._db.now())

    def _lives(self, node_id: UUID) -> bool:
        node = self._db.nodes.get(node_id)
        return node is not None and node.expires_at > self._db.now()

    async def claim(self, node_id: UUID, *, pool: str, limit: int, lease_s: float) -> list[Claimed]:
        await self._pause()
        now = self._db.now()
        grace = self._db.started_at + lease_s >= now
        free = [
            s
            for s in self._db.shards.values()
            if s.pool == pool and (s.owner is None or not (grace or s.owner == node_id or self._lives(s.owner)))
        ]
        for shard in free[:limit]:
            if shard.owner is not None:
                shard.quiet_until = max(shard.quiet_until or 0.0, now + self._longest_s)
            self._doubt(shard)
            shard.owner = node_id
            shard.fence += 1
        return [Claimed(shard.shard, shard.fence) for shard in free[:limit]]

    async def release(self, node_id: UUID, shards: Mapping[int, int]) -> None:
        await self._pause()
        for number, fence in shards.items():
            shard = self._db.shards[number]
            if (shard.owner, shard.fence) == (node_id, fence):
                self._let_go(shard)

    def _let_go(self, shard: Shard) -> None:
        """Unless its last settle says that nothing was under way, a request of the owner may be."""
        last = shard.last
        if last is None or not last.clean or last.fence != shard.fence:
            shard.quiet_until = max(shard.quiet_until or 0.0, self._db.now() + self._longest_s)
        self._doubt(shard)
        shard.owner = None

    def _doubt(self, shard: Shard) -> None:
        """Keep what its owner's clock may have shown."""
        node = None if shard.owner is None else self._db.nodes.get(shard.owner)
        shard.doubtful_to = max(shard.doubtful_to, 0.0 if node is None else node.clock_to)

    async def disown(self, node_id: UUID, shards: Collection[int]) -> None:
        await self._pause()
        for number in shards:
            shard = self._db.shards[number]
            if shard.owner == node_id:
                self._doubt(shard)
                shard.owner, shard.quiet_until = None, self._db.now() + self._longest_s

    async def leave(self, node_id: UUID) -> None:
        await self._pause()
        for shard in self._db.shards.values():
            if shard.owner == node_id:
                self._let_go(shard)
        self._db.nodes.pop(node_id, None)

    async def takeovers(self, shards: Mapping[int, int]) -> list[Takeover]:
        await self._pause()
        return [self._takeover(self._db.shards[number], fence) for number, fence in shards.items()]

    def _takeover(self, shard: Shard, fence: int) -> Takeover:
        quiet_until, last = shard.quiet_until or 0.0, shard.last
        if last is None:
            # An owner that never settled may have sent all the same.
            return Takeover(
                shard.shard, fence, clean=fence == 1, quiet_until=quiet_until, doubtful_to=shard.doubtful_to
            )
        progress = last.progress
        open_seqs = (seq for start, end in progress.open for seq in range(start, end))
        rows = [self._with_payload(event) for seq in open_seqs if (event := shard.journal.get(seq)) is not None]
        return Takeover(
            shard=shard.shard,
            fence=fence,
            settle_no=last.settle_no,
            read_to=progress.read_to,
            read_day=progress.read_day,
            rows=tuple(rows),
            done=dict(progress.partial),
            lanes=tuple(self._lanes(shard.shard)),
            clean=last.clean and last.fence == fence - 1,
            quiet_until=quiet_until,
            doubtful_to=shard.doubtful_to,
        )

    def _lanes(self, number: int) -> Iterable[LaneSummary]:
        for (shard, endpoint_id), rows in self._db.backlog.items():
            if shard == number and rows:
                waiting = rows.values()
                yield LaneSummary(
                    endpoint_id,
                    next(iter(waiting)).tenant_id,
                    len(rows),
                    min(row.due_at for row in waiting),
                    min(row.deadline for row in waiting),
                    sum(row.due_at == NEVER for row in waiting),
                    min(rows),
                )

    # ---- reading ------------------------------------------------------------------------------------------------

    async def read(
        self, positions: Mapping[int, tuple[int, int]], *, rows_max: int, bytes_max: int
    ) -> dict[int, list[JournalRow]]:
        await self._pause()
        found = {}
        for number, (seq, _) in positions.items():
            behind = self._db.shards[number].journal.behind(seq, rows_max)
            rows = [event.row(event.payload if event.owed else None) for event in _within(behind, bytes_max)]
            replays = [row for row in rows if row.kind == Kind.REPLAY and row.owed]
            if rows := self._filled(rows, replays, bytes_max):
                found[number] = rows
        return found

    async def others_wait(
        self, positions: Mapping[int, tuple[int, int]], holders: Collection[UUID], *, rows_max: int
    ) -> bool:
        await self._pause()
        held = set(holders)
        return any(
            event.kind == Kind.CONTROL or not held.issuperset(event.owed)
            for number, (seq, _) in positions.items()
            for event in self._db.shards[number].journal.behind(seq, rows_max)
        )

    def _with_payload(self, event: Event) -> JournalRow:
        replay = event.kind == Kind.REPLAY and event.owed
        return event.row(self._payload(event.event_id) if replay else event.payload)

    def _payload(self, event_id: UUID) -> bytes | None:
        original = self._db.original(event_id)
        return None if original is None else original.payload

    def _filled(self, rows: list[_Row], replays: Sequence[_Row], bytes_max: int) -> list[_Row]:
        """The rows, replays with their payloads, up to the first replay that there is no room for."""
        before = 0
        for replay in replays:
            if before >= bytes_max:
                return rows[: rows.index(replay)]
            replay.payload = self._payload(replay.event_id)
            before += len(replay.payload or b"")
        return rows

    async def fetch(self, fetch: Fetch, *, bytes_max: int) -> tuple[list[BacklogRow], bool, float]:
        await self._pause()
        found = _chosen(fetch, self._lane(fetch), self._seqs(fetch))
        rows = found[: fetch.limit]
        if fetch.wanted is Wanted.EXPIRED:
            filled = [_backlog_row(row, None) for row in rows]
        else:
            filled = self._with_events(fetch.shard, rows, bytes_max)
        more = len(found) > len(filled)
        if more or fetch.wanted not in (Wanted.DUE, Wanted.EXPIRED):
            return filled, more, NEVER
        await self._pause()
        expires = fetch.wanted is Wanted.EXPIRED
        times = (row.deadline if expires else row.due_at for row in self._lane(fetch))
        return filled, more, min((moment for moment in times if moment > at(fetch.until)), default=NEVER)

    def _lane(self, fetch: Fetch) -> list[BacklogChange]:
        return list(self._db.backlog.get((fetch.shard, fetch.endpoint_id), {}).values())

    def _seqs(self, fetch: Fetch) -> frozenset[int]:
        if fetch.event_id is None:
            return frozenset()
        return frozenset(event.seq for event in self._db.by_event.get(fetch.event_id, ()) if event.shard == fetch.shard)

    def _with_events(self, shard: int, rows: Sequence[BacklogChange], bytes_max: int) -> list[BacklogRow]:
        journal = self._db.shards[shard].journal
        filled, replays, before = [], [], 0
        for row in rows:
            if before >= bytes_max:
                break
            event = journal.get(row.position)
            event = None if event is None or event.day != row.day else event
            filled.append(_backlog_row(row, event))
            if event is not None and event.kind == Kind.REPLAY:
                replays.append(filled[-1])
            before += len((event and event.payload) or b"")
        return self._filled(filled, replays, bytes_max)

    # ---- configuration ------------------------------------------------------------------------------------------

    async def load_endpoints(self, endpoint_ids: Collection[UUID]) -> list[Endpoint]:
        await self._pause()
        known = [endpoint_id for endpoint_id in endpoint_ids if endpoint_id in self._db.endpoints]
        for endpoint_id in known:
            self._changed(endpoint_id)
        return [self._loaded(endpoint_id) for endpoint_id in known]

    def _loaded(self, endpoint_id: UUID) -> Endpoint:
        row, now = self._db.endpoints[endpoint_id], self._db.now()
        secrets = [s for s in reversed(self._db.secrets[endpoint_id]) if s[2] is None or s[2] > now]
        return self._defaults.endpoint({
            **row,
            "deleted": row["deleted_at"] is not None,
            "barred": any(endpoint == endpoint_id for endpoint, _ in self._db.barriers),
            "keys": [key for key, _, _ in secrets],
            "created": [created for _, created, _ in secrets],
            "expires": [expires for _, _, expires in secrets],
            "failing_told": endpoint_id in self._db.standings and self._db.standings[endpoint_id].failing_told,
            "locked": False,
        })  # fmt: skip

    async def load_tenants(self, tenant_ids: Collection[UUID]) -> list[Tenant]:
        await self._pause()
        return [self._tenant(tenant_id) for tenant_id in tenant_ids if tenant_id in self._db.tenants]

    def _tenant(self, tenant_id: UUID) -> Tenant:
        """Behind the home shards come those it has departed from and that hold something of it still."""
        row = self._db.tenants[tenant_id]
        departed = sorted(shard for tenant, shard in self._db.departures if tenant == tenant_id)
        return Tenant(tenant_id, (*row["home_shards"], *departed), row["max_in_flight"])

    async def changed_tenants(self, since: float) -> dict[UUID, float]:
        await self._pause()
        return {t: row["changed_at"] for t, row in self._db.tenants.items() if row["changed_at"] > since}

    async def changed_endpoints(self, tenant_ids: Collection[UUID], since: float) -> dict[UUID, float]:
        await self._pause()
        endpoints = (each for tenant_id in tenant_ids for each in self._db.by_tenant.get(tenant_id, ()))
        changed = {each: self._changed(each) for each in endpoints}
        return {each: moment for each, moment in changed.items() if moment > since}

    def _changed(self, endpoint_id: UUID) -> float:
        """When it last did: seen when somebody looks, so no earlier than it was; or loads it, as what has changed back
        before anybody looks is news to whoever has loaded it meanwhile."""
        shown = replace(self._loaded(endpoint_id), health=HEALTHY)
        if self._db.shown.get(endpoint_id, (None, 0.0))[0] != shown:
            self._db.shown[endpoint_id] = shown, self._db.now()
        return self._db.shown[endpoint_id][1]

    async def hold_endpoint(self, endpoint_id: UUID, until: float) -> None:
        await self._pause()
        row = self._db.endpoints.get(endpoint_id)
        if row is not None and (row["hold_until"] is None or row["hold_until"] < at(until)):
            row["hold_until"] = at(until)
            self._touch(row["tenant_id"])

    def _touch(self, tenant_id: UUID) -> None:
        """The workers look at this tenant again."""
        if tenant_id in self._db.tenants:
            self._db.tenants[tenant_id]["changed_at"] = self._db.now()

    async def write_health(self, changed: Mapping[UUID, Health]) -> None:
        await self._pause()
        for endpoint_id, health in changed.items():
            if (row := self._db.endpoints.get(endpoint_id)) is not None:
                if row["failing_since"] != health.failing_since:
                    row["health_at"] = self._db.now()
                row["consecutive_failures"] = health.consecutive_failures
                row["failing_since"] = health.failing_since

    async def health_changes(self, since: float, *, limit: int) -> tuple[dict[UUID, Health], float | None]:
        await self._pause()
        changed = sorted(
            (row["health_at"], endpoint_id)
            for endpoint_id, row in self._db.endpoints.items()
            if row["health_at"] > since
        )[:limit]
        more_after = changed[-1][0] if len(changed) == limit else None
        return {endpoint_id: self._loaded(endpoint_id).health for _, endpoint_id in changed}, more_after

    async def disable_endpoint(self, tenant_id: UUID, endpoint_id: UUID, reason: str) -> bool:
        await self._pause()
        row = self._db.endpoints.get(endpoint_id)
        if row is None or row["deleted_at"] is not None or row["status"] == EndpointStatus.DISABLED:
            return False
        row["status"], row["status_reason"] = EndpointStatus.DISABLED.value, reason
        self._db.outbox.append(
            Notice(OperationalType.ENDPOINT_DISABLED, tenant_id, endpoint_id, self._db.now(), reason=reason)
        )
        self._db.tenants[tenant_id]["config_version"] += 1
        self._touch(tenant_id)
        return True

    # ---- breakers -----------------------------------------------------------------------------------------------

    async def load_breakers(self, tenant_ids: Collection[UUID], *, since: float | None) -> list[BreakerRecord]:
        await self._pause()
        records = [each.record for each in self._db.breakers.values() if each.record.tenant_id in tenant_ids]
        if since is None:
            lately = self._db.now() - RECOVERED_S
            return [each for each in records if each.state is not BreakerState.CLOSED or each.since > lately]
        return [record for record in records if record.since > since]

    async def save_breakers(self, records: Sequence[BreakerRecord]) -> None:
        await self._pause()
        for record in records:
            self._touch(record.tenant_id)
            stored = self._db.breakers.get((record.tenant_id, record.origin))
            if stored is None or stored.record.since < record.since + BREAKER_NEWER_S:
                self._db.breakers[record.tenant_id, record.origin] = Breaker(record)

    async def take_probes(self, node_id: UUID, asked: Sequence[tuple[UUID, str]], *, probe_s: float) -> list[Probe]:
        await self._pause()
        return [self._take_probe(node_id, receiver, probe_s) for receiver in asked]

    def _take_probe(self, node_id: UUID, receiver: tuple[UUID, str], probe_s: float) -> Probe:
        now, stored = self._db.now(), self._db.breakers.get(receiver)
        if stored is None:
            # Of what nobody has stored nobody else knows.
            return Probe(True, now + probe_s, BreakerRecord(*receiver, BreakerState.OPEN, 0.0, None, 1, 0))
        record = stored.record
        free = stored.probe_by == node_id or stored.probe_until <= now
        closed = record.state is BreakerState.CLOSED or record.reopen_at is None or record.reopen_at > now
        granted = free and not closed
        if granted:
            record = replace(record, state=BreakerState.HALF_OPEN, since=max(now, record.since + STEP_S))
            stored = self._db.breakers[receiver] = Breaker(record, node_id, now + probe_s)
        until = max(now, stored.probe_until, record.reopen_at or 0.0)
        return Probe(granted, until, record)

    # ---- the doorbell -------------------------------------------------------------------------------------------

    async def wait_for_ring(self, timeout_s: float) -> Collection[int] | None:
        return await self._rings.wait(timeout_s)

    def ring_here(self, shards: Collection[int]) -> None:
        self._rings.hear(shards)

    def _hear(self, shards: Collection[int]) -> None:
        self._rings.hear(shards)


def _extend(node: Node, until: float) -> None:
    """Its lease ends then; ``clock_to`` is the latest of its ends."""
    node.expires_at, node.clock_to = until, max(node.clock_to, until)


def _within(events: Sequence[Event], bytes_max: int) -> Iterable[Event]:
    """As many as fit into the bytes; one always does."""
    before = 0
    for event in events:
        if before >= bytes_max:
            return
        yield event
        before += len(event.payload or b"") if event.owed else 0


def _chosen(fetch: Fetch, rows: list[BacklogChange], seqs: Collection[int]) -> list[BacklogChange]:
    """At most one more than the limit, which tells that there are more."""
    until = at(fetch.until)
    after = (at(fetch.after[0]), fetch.after[1])
    match fetch.wanted:
        case Wanted.DUE:
            found = [row for row in rows if row.due_at <= until and (row.due_at, row.position) > after]
        case Wanted.FORWARD:
            early = at(fetch.stored_by)
            behind = [row for row in rows if (row.due_at, row.position) > after]
            found = [row for row in behind if until < row.due_at < NEVER and row.stored_at <= early]
        case Wanted.EXPIRED:
            found = [row for row in rows if row.deadline <= until]
        case Wanted.HEAD:
            found = rows
        case Wanted.BLOCKING:
            found = [row for row in rows if row.due_at == NEVER]
        case Wanted.NAMED:
            found = [row for row in rows if row.position in seqs]
    if fetch.wanted in (Wanted.DUE, Wanted.FORWARD):
        found.sort(key=lambda row: (row.due_at, row.position))
    else:
        found.sort(key=lambda row: row.position)
    return found[: fetch.limit + 1]


def _backlog_row(row: BacklogChange, event: Event | None) -> BacklogRow:
    return BacklogRow(
        row.position, row.day, row.event_id, event.type if event else "", event.payload if event else None,
        row.generation, row.reason, row.due_at, row.retry_count, row.deadline, row.created_at, row.stored_at,
        event.trace if event else None,
    )  # fmt: skip
