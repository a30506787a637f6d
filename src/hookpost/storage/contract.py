"""What the actors ask of a store. Ingest, workers, maintenance and the web meet here and nowhere else.

Relies on nothing of a driver. Promises of every driver: what is acknowledged is durable; numbers of a shard are
gapless and visible in their order; a settle is one transaction behind the fence; a cursor of a list never skips.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Protocol, TypeAlias
from uuid import UUID

import msgspec

from hookpost.engine import work
from hookpost.engine.work import BacklogRow, Fetch, JournalRow, ShardSettle, Takeover
from hookpost.model import Endpoint, Health, PayloadRef, Tenant
from hookpost.policy.alerts import Alert
from hookpost.policy.breaker import BreakerRecord, Probe
from hookpost.policy.explain import EventWhy
from hookpost.policy.grains import Grain
from hookpost.policy.looks import Since


class StoreUnavailable(Exception):
    """The store cannot be reached or does not answer in time; nothing is known to be stored. Try again later."""


class CommitUnknown(StoreUnavailable):
    """The connection was lost while committing: it may or may not be stored."""


class DataRejected(Exception):
    """The store refuses a value (its type, its range, a constraint). Trying the same again is of no use."""


class FenceLost(Exception):
    """Another worker owns these shards by now: nothing of the call was written."""

    def __init__(self, shards: Sequence[int]) -> None:
        super().__init__(f"shards {list(shards)} have another owner")
        self.shards = tuple(shards)


class PayloadMissing(Exception):
    """The payload store answers, and what was put there is gone or altered. Asking again is of no use."""


class PayloadStoreForeign(Exception):
    """The payload store is not the one that this installation's payloads lie in; the text says what to do."""


class KeysMissing(Exception):
    """What is sealed in the store needs encryption keys that are not here, or not everywhere; the text names their ids
    and says what to do."""


class SecretLocked(Exception):
    """A secret that this needs does not open: the operator has to give the encryption key that sealed it."""


class NotFound(Exception):
    """There is no such thing, or it belongs to another tenant; the two look alike on purpose."""


class Conflict(Exception):
    """The change collides with what is stored; the text tells the user what to do."""


class Unfit(Exception):
    """A value that asks for what there is not; ``field`` names it, the text tells the user what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


# The type of a control row of the journal: the configuration of its tenant was changed, and what lies behind it must
# not be handled by an older one. It is owed to nobody.
RECONFIGURED = "hookpost.reconfigured"

# Of receivers that recovered longer ago nobody needs to hear: with the default schedule all that had been stored before
# has become due since (retries are at most so far apart).
RECOVERED_S = 3 * 3600.0


@dataclass(frozen=True, slots=True)
class HeaderValue:
    """A header of an endpoint's own. The value of a secret is sealed, and never shown again."""

    value: str = field(repr=False)
    secret: bool = False


# What a request changes of an endpoint's own headers, by lower-case name: null takes one away, what is not named stays.
# None: all of them go.
HeaderChange: TypeAlias = Mapping[str, HeaderValue | None] | None


# What a request changes of an endpoint's TLS: of ``ca``, ``cert`` and ``key`` in PEM (a pair, or both None) what is not
# named stays. None: all of it goes.
TlsChange: TypeAlias = Mapping[str, str | None] | None


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """One step of a rotation of the encryption key: data keys wrapped anew, and how many are left."""

    count: int
    left: int


# ---- payloads -------------------------------------------------------------------------------------------------------


class PayloadStore(Protocol):
    """Where payloads lie that are too large, or too old, for the database."""

    async def put(self, key: str, payload: bytes) -> PayloadRef:
        """Store an object; durable when this returns. Raises StoreUnavailable."""

    async def get(self, ref: PayloadRef) -> bytes:
        """Exactly the bytes that were put. Raises PayloadMissing and StoreUnavailable."""

    async def erase(self, key: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Write zeros over (start, length) of an object; its other bytes stay. One that is gone is none the worse.
        Raises StoreUnavailable."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are gone already are none the worse. Raises StoreUnavailable."""

    def list_hour(self, hour: int) -> AsyncIterator[list[str]]:
        """The names of the objects whose event's id was minted in this hour (since 1970), and of the segments put in
        it, many at a time. Raises StoreUnavailable."""


# ---- ingest ---------------------------------------------------------------------------------------------------------


class Verdict(IntEnum):
    """What became of one event of an append."""

    NEW = 0
    DUPLICATE = 1
    CONFLICT = 2


class NewEvent(msgspec.Struct, gc=False):
    """An event to append; ``request_hash`` tells equal requests of one idempotency key from different ones. ``span``:
    of the producer in its trace, and the flags (policy/trace). A payload
    that lies in the payload store was put there under this event's id.

    A struct, like its answer, as there is one of each for every event: they cost a third of a dataclass.
    """

    event_id: UUID
    tenant_id: UUID
    type: str
    payload: bytes | PayloadRef
    owed: tuple[UUID, ...]
    key: str | None = None
    request_hash: bytes | None = None
    trace_id: UUID | None = None
    span: bytes | None = None
    # For a journal in front of the store, which may have to match the event again: whom it is owed to is the producer's
    # own choice; whom it is not owed to, whatever the filter says.
    targeted: bool = False
    without: UUID | None = None


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The answer for one event: its id (of the first one, for a duplicate) and to how many endpoints it is owed."""

    verdict: Verdict
    event_id: UUID
    delivery_count: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where an append stands in a shard: the events that are new follow ``after`` in their order, all of one day
    (since 2000) and created at one moment (Unix seconds), as a worker reads them."""

    shard: int
    after: int
    day: int
    created_at: float


@dataclass(frozen=True, slots=True)
class Stale:
    """Nothing was appended: these tenants' configuration is newer than the one the events were matched with."""

    tenants: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class EndpointFilter:
    """What ingest must know of an endpoint: its filter, its cap (a small cap pins it to one shard), and whether order
    or a rate limit pins it whatever its cap."""

    endpoint_id: UUID
    events: tuple[str, ...]
    max_in_flight: int
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class TenantRoutes:
    """A tenant as ingest needs it, at one config version. ``ingest_rate_limit``: events a second; ``schemas``: JSON
    Schemas as text, by event type; ``left_behind``: shards that something of it waits for (only the pump asks).
    ``since``: of its endpoints only those that changed in that version or later, and those that are ``gone`` since;
    None: all of them."""

    tenant_id: UUID
    config_version: int
    home_shards: tuple[int, ...]
    max_in_flight: int
    endpoints: tuple[EndpointFilter, ...]
    ingest_rate_limit: float | None = None
    schemas: Mapping[str, str] = field(default_factory=dict)
    left_behind: frozenset[int] = frozenset()
    since: int | None = None
    gone: frozenset[UUID] = frozenset()


@dataclass(frozen=True, slots=True)
class Recalled:
    """What to know before an event is refused: the tenant's config version now, and what was answered to the first
    event of its idempotency key, with its request hash; None: there was none. ``reserved``: it was about to be
    appended, and whether it was is not known (with a journal in Kafka)."""

    config_version: int
    first: Appended | None = None
    request_hash: bytes | None = None
    reserved: bool = False


@dataclass(frozen=True, slots=True)
class SharedDemand:
    """What an API process hears when it has told its demand: how many processes there are, it among them; what all
    others together were asked for, in events a second by tenant; config versions of tenants that have changed; and the
    database's time."""

    processes: int
    others: Mapping[UUID, float]
    changed: Mapping[UUID, int]
    now: float


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key: only the hash of its secret part."""

    key_id: str
    tenant_id: UUID | None
    key_hash: bytes
    scopes: frozenset[str]
    expires_at: float | None
    revoked: bool


DEAD_GROUPED_MAX = 10_000
"""Dead letters that are sorted into groups."""

INGEST_LEASE_S = 3.0
"""An API process that was silent for so long has died, and its part of the limits is the others'."""


class IngestStore(Protocol):
    """What the ingest path asks of the store. ``lot_shards``: to how many shards one append may go."""

    @property
    def lot_shards(self) -> int: ...

    async def append(
        self,
        shard: int | Sequence[int],
        events: Sequence[NewEvent],
        versions: Mapping[UUID, int],
        placed: Callable[[Place], None] | None = None,
    ) -> list[Appended] | Stale:
        """Append to one shard, or each event to its own, in one transaction; answered only when it is durable. One
        poisoned event fails the call with DataRejected and nothing is appended: append its neighbours without it.
        ``placed`` hears, before the answer, of each shard where those that are new stand; not if none is, nor where
        nobody can know yet (a journal in Kafka)."""

    async def load_routes(self, tenant_id: UUID, *, since: int | None = None) -> TenantRoutes | None:
        """The tenant's routes as committed now; None when there is no such tenant.

        ``since``: its endpoints are known as of that config version, and only what has changed of them is asked for
        (more may be told)."""

    async def recall(self, tenant_id: UUID, key: str | None) -> Recalled | None:
        """Asked before an event is refused for its payload; None when there is no such tenant."""

    async def share_demand(
        self, node_id: UUID, demands: Mapping[UUID, float], *, lease_s: float, since: Since
    ) -> SharedDemand:
        """Tell what an API process was asked for of tenants that have a limit (events a second), and hear what the
        others told. It counts for ``lease_s``. Changes are those ``since`` then."""

    async def leave_ingest(self, node_id: UUID) -> None:
        """An API process ends: its part of the limits is the others'."""

    async def find_key(self, key_id: str) -> ApiKey | None:
        """The stored API key of that key id."""

    async def revoked_keys(self, since: Since) -> tuple[frozenset[str], float]:
        """The ids of the API keys revoked since then, those of deleted tenants included, and the database's time."""

    async def ring(self, shards: Collection[int] = ()) -> None:
        """Wake sleeping workers: something was appended to these shards, or (none given) to any. Best effort; they look
        by themselves a little later."""


# ---- a journal in front of the store (docs/adr/0024) ----------------------------------------------------------------


class TopicReplaced(StoreUnavailable):
    """The topic is another one, of the same name, than records were taken over from so far: to read on at an offset of
    the old one would leave out records without a word."""


class OffsetMoved(Exception):
    """A partition was taken over to another offset than was thought: look again."""


class Reserved(msgspec.Struct, frozen=True, gc=False):
    """What became of an idempotency key before its event is sent: NEW, DUPLICATE (a request with the key came before)
    or CONFLICT; the event's id and to how many endpoints it is owed. ``send``: it is not in the store's journal yet."""

    verdict: Verdict
    event_id: UUID
    delivery_count: int
    send: bool


@dataclass(frozen=True, slots=True)
class PumpBatch:
    """Records of the partition of ``shard`` from offset ``start`` up to before ``end``, matched with ``versions`` of
    their tenants' configuration. For each event its ``home`` shard and when it was accepted. ``reached_at``: the last
    of these times. ``left``: tenants of which events stay in ``shard`` though new ones do not go there; what waits for
    that shard is to wait for these, too."""

    shard: int
    fence: int
    start: int
    end: int
    reached_at: float
    events: Sequence[NewEvent]
    homes: Sequence[int]
    accepted_at: Sequence[float]
    versions: Mapping[UUID, int]
    left: frozenset[UUID] = frozenset()


class PumpStore(Protocol):
    """What the pump asks of the store."""

    async def load_routes(self, tenant_id: UUID) -> TenantRoutes | None:
        """As in IngestStore."""

    async def pump(self, batch: PumpBatch) -> Stale | int:
        """Append these events, in their order, to their home shards, and move the partition's offset, in one
        transaction behind the fence; returns how many rows were written: an event that is in the journal already is
        left out. Raises FenceLost, OffsetMoved, DataRejected, StoreUnavailable (it may be stored all the same)."""

    async def pumped_to(self, shards: Collection[int]) -> dict[int, tuple[int, float]]:
        """For each shard whose partition was taken over so far: up to before which offset, and when the last record
        was accepted."""

    async def trim_offsets(self, shard: int) -> None:
        """Forget offsets that later ones have taken the place of."""

    async def shard_count(self) -> int:
        """One more than the greatest number of a shard."""

    async def recognise_topic(self) -> None:
        """Raises TopicReplaced, StoreUnavailable."""

    async def ring(self, shards: Collection[int] = ()) -> None:
        """As in IngestStore."""

    def ring_here(self, shards: Collection[int]) -> None:
        """Wake the worker of this very process, for shards that it owns."""


# ---- workers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claimed:
    """A shard that was just taken and its fence."""

    shard: int
    fence: int


@dataclass(frozen=True, slots=True)
class Survey:
    """Who is alive and who owns what, in one pool."""

    nodes: tuple[UUID, ...]
    owners: Mapping[int, UUID | None]
    now: float


class WorkerStore(Protocol):
    """What a worker asks of the store."""

    async def register(self, node_id: UUID, *, pool: str, name: str, lease_s: float) -> float:
        """Enter the worker with a fresh lease; returns the database's time."""

    async def renew(self, node_id: UUID, *, lease_s: float) -> float | None:
        """Prolong the lease from now on; the database's time, or None when the lease had been removed."""

    async def survey(self, pool: str) -> Survey:
        """The living nodes and the owners of all shards of the pool (None: free, or its owner's lease has expired)."""

    async def claim(self, node_id: UUID, *, pool: str, limit: int, lease_s: float) -> list[Claimed]:
        """Take up to ``limit`` free shards. After the store was restarted a silent owner keeps its own for a lease. A
        shard taken from a silent owner is quiet until that owner's last request must have ended."""

    async def release(self, node_id: UUID, shards: Mapping[int, int]) -> None:
        """Give shards (number → fence) back; those lost meanwhile are left alone."""

    async def disown(self, node_id: UUID, shards: Collection[int]) -> None:
        """Free shards that the worker owns and does not know of; it may have sent for them a moment ago."""

    async def leave(self, node_id: UUID) -> None:
        """Remove the worker's lease and free whatever it still owns."""

    async def takeovers(self, shards: Mapping[int, int]) -> list[Takeover]:
        """What a new owner of these shards (number → fence) starts from; up to a hundred at once."""

    async def read(
        self, positions: Mapping[int, tuple[int, int]], *, rows_max: int, bytes_max: int
    ) -> dict[int, list[JournalRow]]:
        """Journal rows behind (seq, day) of each shard, in order; at most ``rows_max`` and ``bytes_max`` a shard, but
        one row always fits."""

    async def others_wait(
        self, positions: Mapping[int, tuple[int, int]], holders: Collection[UUID], *, rows_max: int
    ) -> bool:
        """Is anything among the next ``rows_max`` rows behind (seq, day) of some shard that is owed to an endpoint that
        is not one of ``holders``, or a control entry?"""

    async def fetch(self, fetch: Fetch, *, bytes_max: int) -> tuple[list[BacklogRow], bool, float]:
        """Backlog rows of a lane; whether there are more; the least due time (or deadline) behind those."""

    async def settle(self, parts: Sequence[ShardSettle]) -> None:
        """Write it all in one transaction. Raises FenceLost, CommitUnknown, StoreUnavailable or DataRejected.

        Notices, and one for the dead letters of each endpoint (but those of operational events), go to the outbox."""

    async def settle_by_row(self, parts: Sequence[ShardSettle]) -> int:
        """Like settle, after DataRejected: every row on its own, one that is refused is stored without what is refused.
        Returns how many were cut so."""

    async def settled(self, part: ShardSettle) -> bool:
        """Was this part committed? Asked after CommitUnknown."""

    async def is_paused(self) -> bool:
        """Has the operator said that nothing is to be sent, on the whole platform?"""

    async def load_endpoints(self, endpoint_ids: Collection[UUID]) -> list[Endpoint]:
        """Endpoints as the engine needs them, deleted ones too."""

    async def load_tenants(self, tenant_ids: Collection[UUID]) -> list[Tenant]:
        """Tenants as the engine needs them."""

    async def ping(self) -> float:
        """The database's time; raises StoreUnavailable."""

    async def changed_tenants(self, since: float) -> dict[UUID, float]:
        """Tenants whose configuration changed after ``since``, by the database's time, and when."""

    async def changed_endpoints(self, tenant_ids: Collection[UUID], since: float) -> dict[UUID, float]:
        """Of these tenants the endpoints of which something has changed after ``since``, and when: all that
        ``load_endpoints`` tells but their health. Their tenants count as changed, too."""

    async def lift_barriers(self) -> int:
        """Lift the barriers, and forget the shards departed from, whose deliveries are done; returns how many of both.
        The tenants concerned count as changed."""

    async def hold_endpoint(self, endpoint_id: UUID, until: float) -> None:
        """Tell all workers that a receiver asked to be left alone until then."""

    async def write_health(self, changed: Mapping[UUID, Health]) -> None:
        """Write down how endpoints do, but for what was announced of them, which is the outbox's."""

    async def health_changes(self, since: float, *, limit: int) -> tuple[dict[UUID, Health], float | None]:
        """Endpoints whose run of failures began or ended, or was announced, after ``since``, the first ``limit``; and
        after when there may be more (None: these are all). Of very many at the same moment some may be left out."""

    async def disable_endpoint(self, tenant_id: UUID, endpoint_id: UUID, reason: str) -> bool:
        """Disable an endpoint and have it announced; what is owed to it waits. False: it was, or is gone."""

    async def load_breakers(self, tenant_ids: Collection[UUID], *, since: float | None) -> list[BreakerRecord]:
        """Of these tenants the breakers that are not closed or have closed lately (within ``RECOVERED_S``), or (with
        ``since``) those that changed after it."""

    async def save_breakers(self, records: Sequence[BreakerRecord]) -> None:
        """Store what changed, unless something later is stored, and have the other workers look at these tenants."""

    async def take_probes(self, node_id: UUID, asked: Sequence[tuple[UUID, str]], *, probe_s: float) -> list[Probe]:
        """Ask for the probes of these receivers (tenant, origin): one worker of all gets each, for ``probe_s``."""

    async def ring(self, shards: Collection[int] = ()) -> None:
        """As in IngestStore."""

    def ring_here(self, shards: Collection[int]) -> None:
        """Wake the reader of this very process, as if somebody had rung for these shards."""

    async def wait_for_ring(self, timeout_s: float) -> Collection[int] | None:
        """Sleep until rung or the time is over, or for a shorter time if nobody can ring. The shards that were rung for
        since the last call; empty: it may be any; None: nobody rang."""


# ---- maintenance ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplayLimits:
    """What bounds one step of a bulk replay."""

    step_s: float
    """A step appends what the rate limit allows in that time, and not more than ..."""
    deliveries_max: int
    """... so many deliveries (one event always fits), and looks at so many candidates."""
    depth_max: int
    """It holds back while a home shard of the tenant has more entries that are not done, or ..."""
    waiting_max: int
    """... more replays of the tenant wait in the backlog."""
    hold_s: float
    """Held back, it looks again after so long."""


class ReplayState(StrEnum):
    """The states of a bulk replay."""

    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """What one step of a bulk replay did: deliveries that it appended and the shards they went to, and the job's state
    after it. ``held`` says that it appended nothing as too much is still to be delivered."""

    replay_id: UUID
    state: ReplayState
    appended: int = 0
    shards: tuple[int, ...] = ()
    held: bool = False
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class ShardLoad:
    """The last number of a shard, and how many of its entries are not done or in the backlog yet."""

    shard: int
    last_seq: int
    depth: int


@dataclass(frozen=True, slots=True)
class Spread:
    """A tenant whose number of home shards follows its load, and how many its pool has."""

    tenant_id: UUID
    home_shards: tuple[int, ...]
    pool_shards: int


@dataclass(frozen=True, slots=True)
class Retired:
    """Partitions that left, and those whose time is over but that hold something still to be delivered or counted."""

    dropped: tuple[str, ...]
    held: tuple[str, ...]


class MoveState(StrEnum):
    """What a step of moving a day's payloads out of the database did."""

    BEGUN = "begun"
    FILLING = "filling"
    FILLED = "filled"
    """All that is to be moved lies in segments; the day takes its new shape a minute later."""
    HELD = "held"
    """Somebody reads the day for long: it takes its new shape later."""
    MOVED = "moved"
    ABANDONED = "abandoned"
    """The tables of events were changed by a migration: it begins anew."""


@dataclass(frozen=True, slots=True)
class Moved:
    """One step of moving the payloads of a day (ISO 8601) into segments, and what it has put into one."""

    day: str
    state: MoveState
    payloads: int = 0
    bytes: int = 0


class MaintenanceStore(Protocol):
    """What keeps the store in shape."""

    async def retire_events(self, *, keep_days: int, forget: Callable[[Sequence[str]], Awaitable[None]]) -> Retired:
        """Drop the events of days more than ``keep_days`` ago, with their dead letters, unless they are still to be
        delivered or counted; ``forget`` is given the names of their payloads' objects, before they are gone. Segments
        are noted for ``remove_objects``."""

    async def retire_attempts(self, *, keep_days: int) -> Retired:
        """Drop the attempts of days more than ``keep_days`` ago, unless they are still to be counted."""

    async def move_payloads(
        self, put: Callable[[str, bytes], Awaitable[Any]], *, age_s: float, rows_max: int, bytes_max: int
    ) -> Moved | None:
        """One step of moving payloads of days that ended more than ``age_s`` ago out of the database into segments of
        about so many rows and bytes, which ``put`` stores; None when there is nothing to do, or another node is at
        it."""

    async def erase_payloads(
        self, erase: Callable[[str, Sequence[tuple[int, int]]], Awaitable[None]], *, limit: int
    ) -> int:
        """Have ``erase`` write over what was removed on request from some of the segments; returns how many."""

    async def forget_replays(self, *, keep_days: int) -> int:
        """Forget some of the bulk replays that ended more than so many days ago; returns how many."""

    async def is_paused(self) -> bool:
        """As in WorkerStore."""

    async def make_partitions(self, *, days_ahead: int) -> int:
        """Have the partitions of today and the coming days; returns how many were made."""

    async def retire_audit(self, *, keep_days: int) -> int:
        """Take away some of the rows of the audit log older than so many days; their chains stay verifiable. Returns
        how many. Raises SecretLocked."""

    async def seal_plain_secrets(self) -> int:
        """Seal some of the secrets that a release before has written in the clear, once none of its processes lives;
        returns how many. Raises SecretLocked."""

    async def look_at_certificates(self, *, limit: int) -> int:
        """Note for the alerts which certificates of endpoints end soon (policy/expiry), each distance once; returns at
        how many endpoints it looked."""

    async def expire_idempotency_keys(self, *, limit: int) -> int:
        """Delete up to ``limit`` keys whose time is over; returns how many."""

    async def remove_objects(self, forget: Callable[[Sequence[str]], Awaitable[None]], *, limit: int) -> int:
        """Have ``forget`` remove some of the objects whose payloads were removed on request; returns how many."""

    async def empty_tenant(self) -> UUID | None:
        """Remove the payloads of a deleted tenant's events, whose rows stay; returns whose they were, None when there
        is none such."""

    async def swept_to(self) -> int:
        """The hour (since 1970) up to which the payload store was swept; that of the first call, at the beginning."""

    async def sweepable_hours(self, *, age_s: float) -> int:
        """The first hour (since 1970) in which an event may have been minted within the last ``age_s``."""

    async def orphans(self, keys: Sequence[str]) -> list[str]:
        """Of these objects of events, and segments (by name), those that nothing refers to."""

    async def note_swept(self, hour: int) -> None:
        """The payload store was swept up to this hour."""

    async def prune_progress(self) -> int:
        """Drop progress of past days that a later row of the same shard has replaced; returns how many partitions."""

    async def replay_step(self, limits: ReplayLimits) -> ReplayStep | None:
        """Take the bulk replay whose turn it is one step further; None when there is none. What it appends and how far
        the job is are one transaction, so no end of a runner repeats or skips anything. Two never have the same job."""

    async def next_replay_in(self) -> float | None:
        """Seconds until a bulk replay may go on (0 or less: now); None when none runs."""

    async def ring(self, shards: Collection[int] = ()) -> None:
        """Wake sleeping workers, as in IngestStore."""

    async def is_eldest(self, node_id: UUID) -> bool:
        """Of all living workers, has this one been here longest? One at most is told so at a time."""

    async def analyse_grown(self) -> list[str]:
        """Have the plans made anew of whatever reads a table that has grown to many times what it was when they were
        made; returns the tables."""

    async def shard_loads(self) -> list[ShardLoad]:
        """How much each shard holds."""

    async def tenant_shares(self, shards: Collection[int], *, rows_max: int) -> dict[int, dict[UUID, float]]:
        """Whose the newest ``rows_max`` rows of each of these shards are: parts of 1."""

    async def spread_tenants(self, tenant_ids: Collection[UUID]) -> list[Spread]:
        """Of these tenants those whose spread follows their load, and all others that it has spread over several."""

    async def set_spread(self, tenant_id: UUID, *, known: int, wanted: int) -> bool:
        """Change the number of home shards, if it still follows the load and is the known one; was it changed?"""


# ---- rollups --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToCount:
    """What there was to count at ``moment`` (Unix seconds of the database) and is left of it: shards, and up to which
    of their settles and events."""

    moment: float
    settles: tuple[tuple[int, int], ...]
    events: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RolledUp:
    """What one step of the builder of rollups counted, how many ``rows`` it added the attempts to, and what is left to
    count; None: nothing."""

    attempts: int
    events: int
    rows: int
    left: ToCount | None


class RollupStore(Protocol):
    """What the builder of rollups asks of the store. Harmless from several nodes at once: one of them does it."""

    async def roll_up(self, *, settles_max: int, events_max: int, left: ToCount | None = None) -> RolledUp | None:
        """Count the attempts of at most so many settles, and so many events, of what the step before has ``left``
        (None: of all there is now), one shard after the other. None while another node does it. One transaction:
        whatever ends it, and whoever counted meanwhile, nothing is counted twice or missed."""

    async def build_rollups(self, *, rows_max: int) -> bool:
        """One step of building coarser grains of what is over, by some ``rows_max`` finer rows; is there more to build?
        False, too, while another node builds."""

    async def prune_rollups(self, grain: Grain, *, age_s: float, rows_max: int) -> int:
        """Remove rollups of a grain that are older than ``age_s`` and built into the next coarser one, so many at a
        time; returns how many. 0, too, while another node builds."""


# ---- alerts ---------------------------------------------------------------------------------------------------------


class Channel(StrEnum):
    """Where an alert is told: as an event of its tenant, to the tenant's address, to the operator's URL."""

    EVENT = "event"
    MAIL = "mail"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class DueAlert:
    """An alert to tell in one channel now; ``tries`` counts this one, ``alert_email`` is the tenant's address now."""

    alert_id: UUID
    channel: Channel
    alert: Alert
    tries: int
    alert_email: str | None


class AlertStore(Protocol):
    """What the teller of alerts asks of the store. Harmless from several nodes at once."""

    async def gather_alerts(self, channels: Collection[Channel], *, limit: int) -> int:
        """Make alerts of up to ``limit`` notices of the outbox, to be told in these channels, in one transaction.
        Returns how many notices were taken; 0, too, while another node gathers."""

    async def claim_alerts(self, channel: Channel, *, limit: int, lease_s: float) -> list[DueAlert]:
        """Take alerts that are due; one that is neither finished nor postponed is due again after ``lease_s``."""

    async def finish_alert(self, alert: DueAlert) -> None:
        """It was told in its channel, or is given up."""

    async def postpone_alert(self, alert: DueAlert, *, wait_s: float) -> None:
        """Try it again after that time."""


# ---- the API --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: rows, and the sort key of the last one when there are more."""

    rows: list[dict[str, Any]]
    next_key: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class EventView:
    """An event with the current state of each of its deliveries."""

    event: dict[str, Any]
    deliveries: list[dict[str, Any]] = field(default_factory=list)


class ControlAction(StrEnum):
    """What can be asked of deliveries that are not over; the values are the types of the journal rows that ask."""

    CANCEL = work.CANCEL
    RETRY_NOW = work.RETRY_NOW


@dataclass(frozen=True, slots=True)
class ReplayFilter:
    """Which deliveries a bulk replay owes once more. ``status``: those that are dead, those that were delivered, or any
    whatever became of it. ``since`` and ``until`` bound the time at which the event was accepted (Unix seconds).
    ``reason``: of the dead ones only those that died of it."""

    status: str = "dead"
    endpoint_id: UUID | None = None
    type: str | None = None
    since: float | None = None
    until: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PointRows:
    """One point of a series: attempts by (outcome, error code or "", retry), and by least latency of their bucket;
    ``arrivals``: first deliveries of events by the least of their bucket of the time from acceptance to the 2xx."""

    counts: dict[tuple[str, str, bool], int] = field(default_factory=dict)
    latencies: dict[int, int] = field(default_factory=dict)
    arrivals: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """Attempts that ended in points of time, by their number; what was settled by ``complete_until`` is in it. None:
    nothing was counted yet."""

    points: dict[int, PointRows]
    complete_until: float | None


@dataclass(frozen=True, slots=True)
class Counted:
    """How many there are; not ``exact``: at least so many."""

    count: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How things stand now: deliveries that wait, dead letters, entries of the journal that are not done. ``depth`` is
    None where it was not asked for, as it is that of shards, which tenants share."""

    waiting: Counted
    dead: Counted
    depth: int | None


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """A shard now: entries of its journal that are not done, since how long the oldest of them is there, and the oldest
    that no worker has read yet, and whether a living worker owns it. ``lag``: records in Kafka that are no entries yet;
    None: there is no Kafka, or no answer."""

    shard: int
    pool: str
    depth: int
    age_s: float
    unread_s: float
    owned: bool
    lag: int | None = None


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """What a tenant has had since the day (UTC) began."""

    tenant_id: UUID
    accepted: int
    attempts: int
    delivered: int
    dead: int


@dataclass(frozen=True, slots=True)
class PlatformFigures:
    """The platform as the store sees it: its shards; what waits, by reason (counted to a limit; ``backlog_exact``); the
    tenants with the most attempts today; how far behind the rollups are (None: nothing was counted yet); whether the
    brokers of Kafka answered (None: there is no Kafka)."""

    shards: tuple[ShardFigures, ...]
    backlog: Mapping[str, int]
    backlog_exact: bool
    tenants: tuple[TenantFigures, ...]
    rollups_behind_s: float | None
    journal_up: bool | None = None


class FiguresStore(Protocol):
    """What a page of metrics asks of the store."""

    async def platform_figures(self, *, backlog_max: int, tenants_max: int) -> PlatformFigures:
        """How the platform stands now, in bounded time: at most so many rows of the backlog are counted."""


@dataclass(frozen=True, slots=True)
class Metered:
    """What the platform and its tenants had on some days: the total and those with the most attempts (or the one tenant
    that was asked for), as rows of the metering; and what an attempt's row takes on disk (None: too few to tell)."""

    platform: dict[str, Any] | None
    tenants: list[dict[str, Any]]
    attempt_row_bytes: float | None
    complete_until: float | None


@dataclass(frozen=True, slots=True)
class Matched:
    """How many deliveries a filter matches; not ``exact``: at least so many, as counting them all takes too long."""

    deliveries: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Scanned:
    """A page of a search that looks at so many rows and no more: what was found among them, how many there were, and
    the sort key to go on behind when there may be more."""

    rows: list[dict[str, Any]]
    looked_at: int
    next_key: tuple[Any, ...] | None


class SearchStore(Protocol):
    """What people look for, found through an index or among the newest rows; never by a scan of the history.
    ``tenant_id`` None searches across tenants (admin)."""

    async def events_by_trace(self, tenant_id: UUID | None, trace_id: UUID, *, limit: int) -> list[dict[str, Any]]:
        """The newest events that a producer posted in this trace."""

    async def events_by_key(self, tenant_id: UUID | None, key: str, *, limit: int) -> list[dict[str, Any]]:
        """The newest events that were posted with this idempotency key."""

    async def endpoints_by_host(self, tenant_id: UUID | None, host: str, *, limit: int) -> list[dict[str, Any]]:
        """Endpoints at this host or at a subdomain of it, newest first."""

    async def endpoint_urls(self, tenant_id: UUID | None, endpoint_ids: Collection[UUID]) -> dict[UUID, str]:
        """The URLs of those of these endpoints that there are or were."""

    async def event_statuses(self, events: Collection[tuple[UUID, UUID]]) -> dict[UUID, str]:
        """Where each of these events, named with its tenant, stands: as `AdminStore.get_event` tells of one."""

    async def scan_events(
        self,
        tenant_id: UUID | None,
        *,
        type: str | None,
        holding: bytes | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Scanned:
        """Events of a type, and those whose payload holds these bytes, newest first, among the newest there are. What
        lies in the payload store is not looked into."""

    async def scan_attempts(
        self,
        tenant_id: UUID | None,
        *,
        outcome: str | None,
        http_status: tuple[int, int] | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Scanned:
        """Attempts with an outcome and a status from one to another, newest first, among the newest there are."""

    async def list_waiting_of_all(self, tenant_id: UUID | None, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        """What waits in the backlog, whatever the endpoint."""

    async def failing_endpoints(self, tenant_id: UUID | None, *, since: float, limit: int) -> list[dict[str, Any]]:
        """The endpoints with the most failed attempts lately, by the rollups."""

    async def open_breakers(self, tenant_id: UUID | None, *, limit: int) -> list[dict[str, Any]]:
        """Breakers that hold deliveries back, those that opened last first."""

    async def dead_letter_groups(self, tenant_id: UUID | None) -> list[dict[str, Any]]:
        """The newest DEAD_GROUPED_MAX dead letters, counted by endpoint and reason; the largest groups first."""


@dataclass(frozen=True, slots=True)
class TypeLimits:
    """How many event types a tenant may have, and the bytes of all their schemas together: each API process that takes
    its events holds them in memory."""

    types_max: int = 1_000
    schemas_bytes_max: int = 1024 * 1024


def types_full(limits: TypeLimits) -> Conflict:
    """One more would be too many."""
    return Conflict(f"the tenant has {limits.types_max} event types, which is the limit: delete some first")


def schemas_full(limits: TypeLimits) -> Conflict:
    """With this one the schemas would be too large."""
    return Conflict(
        f"the schemas of a tenant's event types may have {limits.schemas_bytes_max} bytes together: shorten some first"
    )


class EventTypeStore(Protocol):
    """What tenants say of the types of their events. ``schema`` is JSON Schema as text, checked before; a change of one
    is in force for every event posted after it was acknowledged."""

    async def create_event_type(
        self, tenant_id: UUID, name: str, values: Mapping[str, Any], *, limits: TypeLimits
    ) -> dict[str, Any]:
        """A new type with ``description`` and ``schema``. Raises NotFound for no such tenant, and Conflict when there
        is one of that name, or too much already."""

    async def get_event_type(self, tenant_id: UUID, name: str) -> dict[str, Any]:
        """Raises NotFound."""

    async def list_event_types(self, tenant_id: UUID | None, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        """Newest first."""

    async def update_event_type(
        self, tenant_id: UUID, name: str, changes: Mapping[str, Any], *, limits: TypeLimits
    ) -> dict[str, Any]:
        """Raises NotFound, and Conflict when the schemas become too large together."""

    async def delete_event_type(self, tenant_id: UUID, name: str) -> None:
        """Its events are taken as they come again. Raises NotFound."""


class AdminStore(SearchStore, FiguresStore, EventTypeStore, Protocol):
    """What the API and the dashboard ask of the store. ``tenant_id`` None reads across tenants (admin)."""

    async def ping(self) -> float:
        """The database's time; raises StoreUnavailable."""

    async def unowned_shards(self) -> int:
        """Shards that no living worker owns."""

    async def journal_fault(self, timeout_s: float) -> str | None:
        """Why events cannot be appended although the store can be reached; None: they can, or it is one with it."""

    async def list_pools(self) -> list[dict[str, Any]]:
        """The pools {name, shards, tenants, workers}, by name."""

    async def grow_pool(self, name: str, shards: int, *, shards_max: int) -> dict[str, Any]:
        """Have so many shards in the pool, which is made if there is none. Raises Unfit for fewer than it has, and for
        more than ``shards_max`` in all pools."""

    async def create_tenant(self, tenant_id: UUID, values: Mapping[str, Any]) -> dict[str, Any]:
        """A new tenant; without ``home_shards`` it gets ``spread`` (1) shards of its pool, the least used ones. Raises
        Unfit for a pool or a spread that there is not."""

    async def get_tenant(self, tenant_id: UUID) -> dict[str, Any]:
        """Raises NotFound."""

    async def list_tenants(self, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        """Newest first."""

    async def update_tenant(self, tenant_id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change a tenant; with ``pool`` or ``spread`` its home shards change, too, and what must not be overtaken is
        waited for. Raises NotFound, Unfit, and Conflict for a move to another pool while the last one is not over."""

    async def delete_tenant(self, tenant_id: UUID) -> None:
        """Tombstone: its keys stop working, its endpoints are deleted. Raises NotFound."""

    async def create_key(self, values: Mapping[str, Any], *, keys_max: int) -> dict[str, Any]:
        """Store a new API key (its hash). Raises Conflict when its tenant has so many that are good."""

    async def list_keys(self, tenant_id: UUID, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        """Newest first, revoked ones too."""

    async def revoke_key(self, tenant_id: UUID, key_id: str) -> None:
        """Raises NotFound."""

    async def list_audit(
        self,
        tenant_id: UUID | None,
        *,
        action: str | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Page:
        """The audit log of a tenant, or (None) of all and the platform, newest first. Who acts is told by
        ``storage.acting``; every change writes its row in its own transaction."""

    async def note(self, tenant_id: UUID | None, action: str, target: str, told: Mapping[str, Any] | None) -> None:
        """Enter what is no change of anything stored into the audit log, of a tenant or (None) of the platform. Raises
        SecretLocked."""

    async def refused_sign_ins(self, address: str, *, within_s: float, limit: int) -> list[float]:
        """How many seconds ago sign-ins from an address were refused, by the audit log, since the last that was not;
        the newest first."""

    async def missing_keys(self) -> list[str]:
        """The ids of encryption keys that sealed secrets need and this process does not hold."""

    async def create_endpoint(self, values: Mapping[str, Any], secret: bytes, *, endpoints_max: int) -> dict[str, Any]:
        """A new endpoint with its first secret; ``headers`` among the values is a HeaderChange. Raises Conflict when
        the tenant has too many or the uid is taken."""

    async def get_endpoint(self, tenant_id: UUID | None, endpoint_id: UUID) -> dict[str, Any]:
        """Raises NotFound, also for a deleted one."""

    async def list_endpoints(self, tenant_id: UUID | None, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        """Newest first."""

    async def update_endpoint(self, tenant_id: UUID, endpoint_id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Setting the status to enabled, be it so already, closes the breaker of the endpoint's receiver. ``headers``
        is a HeaderChange.

        Raises NotFound, and Conflict: the uid is taken, or order is to end while the endpoint moves."""

    async def delete_endpoint(self, tenant_id: UUID, endpoint_id: UUID) -> None:
        """Tombstone; what was owed to it is cancelled. Raises NotFound."""

    async def get_secrets(self, tenant_id: UUID, endpoint_id: UUID) -> list[dict[str, Any]]:
        """The valid secrets {key, created_at, expires_at}, newest first, to be shown: the audit log tells of it.
        Raises NotFound and SecretLocked."""

    async def use_secrets(self, tenant_id: UUID, endpoint_id: UUID) -> list[dict[str, Any]]:
        """The same to sign or verify with, or to tell their ages of; nobody is shown them."""

    async def rotate_secret(self, tenant_id: UUID, endpoint_id: UUID, key: bytes, *, grace_s: float) -> float:
        """Add a new secret; the old ones go on signing for ``grace_s``. Returns when they stop.

        Raises NotFound, and Conflict when too many are valid."""

    async def get_event(self, tenant_id: UUID | None, event_id: UUID) -> EventView:
        """Raises NotFound."""

    async def why(
        self, tenant_id: UUID | None, event_id: UUID, endpoint_id: UUID | None, *, owed_max: int, others_max: int
    ) -> EventWhy:
        """What is recorded of an event at one endpoint; or at ``owed_max`` of those it was owed to and at the newest
        ``others_max`` of the others. Raises NotFound, also for an endpoint that its tenant never had."""

    async def list_events(
        self,
        tenant_id: UUID | None,
        *,
        type: str | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Page:
        """Newest first, without payloads."""

    async def list_attempts(
        self,
        tenant_id: UUID | None,
        *,
        endpoint_id: UUID | None,
        event_id: UUID | None,
        outcome: str | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Page:
        """Newest first by scheduled time."""

    async def scan_owed(
        self, tenant_id: UUID, endpoint_id: UUID, *, after: tuple[Any, ...] | None, limit: int
    ) -> Scanned:
        """Deliveries of an endpoint, each in its state now, by their events, newest first."""

    async def list_waiting(
        self, tenant_id: UUID | None, endpoint_id: UUID, *, after: tuple[Any, ...] | None, limit: int
    ) -> Page:
        """What waits in the backlog for one endpoint, oldest first."""

    async def list_dead_letters(
        self,
        tenant_id: UUID | None,
        *,
        endpoint_id: UUID | None,
        reason: str | None,
        since: float | None,
        until: float | None,
        after: tuple[Any, ...] | None,
        limit: int,
    ) -> Page:
        """Newest first."""

    async def append_replay(self, tenant_id: UUID, event_id: UUID, endpoint_id: UUID | None) -> int:
        """Owe the event once more, to one endpoint or to all it was owed to that still exist; returns to how many.
        Raises NotFound, and Conflict when its payload was removed on request."""

    async def append_control(
        self, tenant_id: UUID, event_id: UUID, endpoint_id: UUID | None, action: ControlAction
    ) -> int:
        """Ask the owners of the event's shards to cancel or hurry its deliveries, to one endpoint or to all; returns of
        how many: those that are not over, and, to cancel, those that are dead and block an ordered endpoint. Raises
        NotFound, also for an endpoint that the event was not owed to."""

    async def remove_payload(self, tenant_id: UUID, event_id: UUID) -> int:
        """Take an event's payload away for good, and cancel what is not over of its deliveries; returns how many. Its
        row stays. Raises NotFound."""

    async def remove_objects(self, forget: Callable[[Sequence[str]], Awaitable[None]], *, limit: int) -> int:
        """As in MaintenanceStore."""

    async def count_replay(self, tenant_id: UUID, wanted: ReplayFilter) -> Matched:
        """What a bulk replay would match if it were created now."""

    async def create_replay(
        self, tenant_id: UUID, replay_id: UUID, wanted: ReplayFilter, *, rate_limit: float, running_max: int
    ) -> dict[str, Any]:
        """A bulk replay of what exists now, at most so many deliveries a second. Raises Conflict when so many of the
        tenant's run already."""

    async def get_replay(self, tenant_id: UUID | None, replay_id: UUID) -> dict[str, Any]:
        """Raises NotFound."""

    async def list_replays(self, tenant_id: UUID | None, *, after: tuple[Any, ...] | None, limit: int) -> Page:
        """Newest first."""

    async def cancel_replay(self, tenant_id: UUID, replay_id: UUID) -> bool:
        """End a bulk replay; what it has appended stays. False when it has ended before. Raises NotFound."""

    async def ring(self, shards: Collection[int] = ()) -> None:
        """Wake sleeping workers, as in IngestStore."""

    async def series(
        self, tenant_id: UUID | None, endpoint_id: UUID | None, *, start: float, end: float, step_s: int
    ) -> Series:
        """Attempts from ``start`` (the beginning of a bucket of the coarsest grain that divides the step) to before
        ``end``, by the rollups alone. Raises NotFound for an endpoint that never was, and Unfit for a step that is
        finer than what is kept of that time."""

    async def standing(
        self, tenant_id: UUID | None, endpoint_id: UUID | None, *, count_max: int, with_depth: bool
    ) -> Standing:
        """How things stand now, by the tables of the engine; nothing is counted beyond ``count_max``."""

    async def list_usage(
        self, tenant_id: UUID | None, *, first_day: float, end_day: float, after: tuple[Any, ...] | None, limit: int
    ) -> Page:
        """The metering by day (UTC, Unix seconds of its beginning) and tenant, newest first."""

    async def metered(self, tenant_id: UUID | None, *, first_day: float, end_day: float, tenants_max: int) -> Metered:
        """The metering of these days together; of one tenant without the platform's total."""


class Store(IngestStore, WorkerStore, MaintenanceStore, RollupStore, AlertStore, AdminStore, Protocol):
    """Everything."""
