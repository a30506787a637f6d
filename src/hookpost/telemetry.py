"""The catalogue of every log line and metric of Hookpost, and the one way to write a line.

Relies on nothing but the standard library and ``hookpost.model``. Promises: a line carries a name that is declared
here, is one line whatever its values contain, and never shows a secret. The policy for callers is stricter than the
masking: **headers, payloads, responses and the query of a URL are never logged**, not even at debug level. Pass a URL
through ``safe_url`` and leave the rest out. The masking is the net below that policy, not a reason to relax it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TextIO
from urllib.parse import urlsplit

from hookpost.model import DeadReason, Secret

__all__ = [
    "COUNTERS",
    "EVENTS",
    "GAUGES",
    "HISTOGRAMS",
    "LABELLED",
    "LEVELS",
    "VALUE_CHARS_MAX",
    "Event",
    "LogFormat",
    "UndeclaredError",
    "configure",
    "count",
    "count_by",
    "counters",
    "histograms",
    "is_told",
    "labelled",
    "log",
    "log_error",
    "observe",
    "safe_url",
]

LogFormat = Literal["auto", "text", "json"]

LEVELS: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
)

VALUE_CHARS_MAX: Final = 2_000
"""Longest value of one field: a line stays readable, and below what log shippers cut (16 KiB with Docker's driver)."""

TRACEBACK_CHARS_MAX: Final = 12_000
"""Longest traceback: its end is kept, because that is where the fault is."""

_MASK: Final = "********"
_LOGGER_NAME: Final = "hookpost"
_EVENT_ATTRIBUTE: Final = "hookpost_event"
_FIELDS_ATTRIBUTE: Final = "hookpost_fields"


class UndeclaredError(AssertionError):
    """A log line, field or counter that is missing in this catalogue: a mistake of the program, not of its input."""


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of log line: how loud it is, its words with ``{field}`` for what it needs, and what to make of it.

    ``every_s``: no line within so many seconds of the last; the next one tells how many were left out (``left_out``).
    """

    level: int
    message: str
    meaning: str
    every_s: float = 0.0


EVENTS: Final[Mapping[str, Event]] = MappingProxyType(
    {
        # The life of a process.
        "server_starting": Event(
            logging.INFO,
            "Hookpost {version} is starting",
            "The first line of a process, before it touches the database.",
        ),
        "server_ready": Event(
            logging.INFO, "ready at {url}", "Every process of this server is up; events are accepted and delivered."
        ),
        "server_stopping": Event(
            logging.INFO, "stopping: {reason}", "No new work is taken; what is in flight finishes or is handed back."
        ),
        "server_stopped": Event(logging.INFO, "stopped", "The last line of a process that ended in order."),
        "child_started": Event(
            logging.INFO, "started {child} (pid {pid})", "The supervisor started an API or worker process."
        ),
        "child_exited": Event(
            logging.WARNING,
            "{child} (pid {pid}) ended: {reason}",
            "A process ended that nobody stopped. Its shards are taken over when its lease has run out.",
        ),
        "child_restarted": Event(
            logging.INFO,
            "restarting {child} in {delay_s} s",
            "Waits grow when a process keeps failing; the lines before say why it ended.",
        ),
        "unknown_setting": Event(
            logging.WARNING,
            "{variable} is not a setting of Hookpost{suggestion}",
            "Usually a typing mistake: the variable has no effect. `hookpost config` lists all settings.",
        ),
        # The database.
        "postgres_started": Event(
            logging.INFO,
            "embedded PostgreSQL started (pid {pid}) in {data_dir}, after {seconds} s",
            "Long waits are the recovery after a machine crash.",
        ),
        "postgres_adopted": Event(
            logging.INFO,
            "embedded PostgreSQL of an earlier run adopted (pid {pid}) in {data_dir}",
            "The server before this one was killed; its database went on running and nothing was lost.",
        ),
        "postgres_stopped": Event(
            logging.INFO, "embedded PostgreSQL stopped ({how})", "`fast` is the rule; `immediate` and `killed` recover."
        ),
        "postgres_lost": Event(
            logging.ERROR,
            "PostgreSQL does not answer: {reason}",
            "Producers get 503 and nothing is sent until it is back; no delivery's life is burnt meanwhile.",
        ),
        "postgres_not_started": Event(
            logging.ERROR,
            "the embedded PostgreSQL cannot be started, trying again in {delay_s} s: {reason}",
            "Mostly a full disk: make room. Producers get 503 until it is back, and nothing has to be restarted.",
        ),
        "request_unavailable": Event(
            logging.WARNING,
            "{where} answered with 503: {reason}",
            "The database is away or too slow, or a queue in front of it is full. What was posted is not acknowledged.",
            every_s=1.0,
        ),
        "postgres_back": Event(
            logging.INFO, "PostgreSQL answers again after {seconds} s", "Deliveries go on where they stopped."
        ),
        "parent_folder_opened": Event(
            logging.WARNING,
            "{folder} can now be traversed by other users (mode {old_mode} became {new_mode}): {why}",
            "PostgreSQL refuses to run as root, so its own user must reach its files. Run Hookpost as an ordinary "
            "user, or choose a data directory outside private folders, to avoid it.",
        ),
        "migrated": Event(
            logging.INFO, "the schema went from {old_revision} to {new_revision}", "Migrations ran at start."
        ),
        "partition_created": Event(
            logging.INFO, "partition {partition} created", "Daily partitions are made some days ahead."
        ),
        "partition_dropped": Event(
            logging.INFO, "partition {partition} dropped", "Its day is longer ago than RETENTION_DAYS."
        ),
        "partition_held": Event(
            logging.WARNING,
            "partition {partition} is kept although its time is over: something in it is to be delivered or counted",
            "A dead delivery blocks an ordered endpoint (replay or cancel it), a shard has no worker, or the rollups "
            "stand still (`complete_until` of GET /v1/stats).",
        ),
        "sending_paused": Event(
            logging.WARNING,
            "nothing is sent: the platform is paused",
            "It was started with --paused, or by `hookpost sending --pause`. Go on: `hookpost sending --go`.",
        ),
        "sending_resumed": Event(logging.INFO, "sending goes on", "Somebody said `hookpost sending --go`."),
        "payload_removed": Event(
            logging.INFO,
            "payload of {event_id} removed, {deliveries} deliveries asked to be cancelled (admin: {admin})",
            "Somebody asked for it. What happened to the event stays on record.",
        ),
        "tenant_emptied": Event(
            logging.INFO,
            "the payloads of {tenant_id} are removed",
            "The tenant was deleted; its history stays until it leaves.",
        ),
        "payloads_swept": Event(
            logging.INFO,
            "{objects} objects that no event refers to were removed from the payload store",
            "Posts that failed behind the store, or were duplicates. Many of them: the database is slow.",
        ),
        "day_moved": Event(
            logging.INFO,
            "the payloads of {day} lie in segments of the payload store now",
            "They are older than COLD_AFTER_HOURS; the database keeps the rows without them.",
        ),
        "day_held": Event(
            logging.INFO,
            "the payloads of {day} stay in the database for now: somebody reads its events for long",
            "A dump or another long transaction. It is tried again every minute.",
        ),
        "payload_store_failed": Event(
            logging.ERROR,
            "payloads cannot be read: {reason}",
            "Deliveries of large payloads wait and are tried again; no endpoint is charged for it. Told once a minute.",
            every_s=60.0,
        ),
        "payload_store_foreign": Event(
            logging.ERROR,
            "large payloads are refused: {reason}",
            "Give all processes the same HOOKPOST_PAYLOAD_STORE_URL, and each installation its own.",
        ),
        "payload_missing": Event(
            logging.ERROR,
            "the payload of event {event_id} is gone: {reason}",
            "The object vanished or was altered in the payload store; its deliveries are dead letters.",
        ),
        "payload_store_unchecked": Event(
            logging.WARNING,
            "whether the payload store is ours cannot be told: {reason}",
            "It did not answer at the start. What is in the database is delivered, large payloads wait.",
        ),
        "maintenance_failed": Event(
            logging.ERROR,
            "maintenance task {task} failed: {reason}",
            "It is tried again at the next turn. When no partition can be made for days, ingest stops at the last one.",
        ),
        "clock_skew": Event(
            logging.WARNING,
            "this machine's clock is {skew_ms} ms off the database's",
            "Leases count in the database's time, so nothing breaks; set up NTP, or ids and latencies look wrong.",
        ),
        "audit_retired": Event(
            logging.INFO,
            "{rows} rows of the audit log were taken away, they are older than AUDIT_DAYS",
            "Each chain says so itself, and can be verified from there on.",
        ),
        "secrets_sealed": Event(
            logging.INFO,
            "{secrets} signing secrets that a release before kept in the clear are sealed",
            "Once after an upgrade, when no process of the release before lives any more.",
        ),
        "secret_locked": Event(
            logging.ERROR,
            "a secret does not open: {reason}",
            "Give this process the encryption key that the line names, or put the file of keys back, and restart it.",
        ),
        "endpoints_locked": Event(
            logging.ERROR,
            "{endpoints} endpoints cannot be sent to, their secrets do not open: {reason}",
            "What is owed to them waits (secret_locked). Give the encryption key back and restart this process; a row "
            "that was altered is mended by a rotation of the secret with grace_period_s 0.",
        ),
        # First start.
        "encryption_key_made": Event(
            logging.WARNING,
            "an encryption key was made in {path}: keep a copy of the file, away from the database's backups",
            "Signing secrets and secret headers are sealed with it, and are lost without it.",
        ),
        "default_tenant_created": Event(
            logging.INFO, "tenant {tenant_id} created", "The default tenant of a single-tenant installation."
        ),
        "admin_key_created": Event(
            logging.INFO,
            "an admin key was generated; it is printed once, on standard output",
            "The key itself is never logged and only its hash is stored. Set HOOKPOST_ADMIN_KEY to bring your own.",
        ),
        # The actors.
        "api_ready": Event(logging.INFO, "API listens at {url}", "This process accepts requests."),
        "worker_ready": Event(logging.INFO, "worker {worker} is ready in pool {pool}", "It now competes for shards."),
        "shards_acquired": Event(
            logging.INFO, "shards {shards} acquired", "This worker delivers what these shards hold, until released."
        ),
        "shards_released": Event(logging.INFO, "shards {shards} released", "Handed over to other workers in order."),
        "shards_disowned": Event(
            logging.WARNING,
            "shards {shards} were ours without our knowing; freed",
            "A claim whose answer got lost. They are claimed anew at once; nothing to do unless it goes on and on.",
        ),
        "lease_lost": Event(
            logging.WARNING,
            "the lease is lost ({reason}); shards {shards} are given up",
            "Another worker may own them now. Requests in flight may be repeated, marked as possible duplicates.",
        ),
        "settle_failed": Event(
            logging.ERROR,
            "results could not be recorded: {reason}",
            "They stay in memory and are tried again; no new deliveries start for these shards meanwhile.",
        ),
        "settle_retried": Event(
            logging.INFO, "results recorded at attempt {attempt}", "An earlier settle failed and this one did not."
        ),
        "settle_row_isolated": Event(
            logging.ERROR,
            "one result of {event_id} to {endpoint_id} cannot be stored and is set aside: {reason}",
            "A data error fails alone: the rest of its batch is recorded. Please report it.",
        ),
        "journal_gap": Event(
            logging.ERROR,
            "shard {shard}: sequence {expected} expected, {found} found",
            "The journal is numbered without gaps, so an entry is missing. Was the database edited by hand?",
        ),
        "attempt_failed": Event(
            logging.INFO,
            "attempt {attempt_id} of {event_id} to {endpoint_id} failed: {error_code}",
            "One wide line for each attempt that failed, twenty a second at most; `attempts` counts the others.",
        ),
        "attempt_delivered": Event(
            logging.DEBUG,
            "attempt {attempt_id} of {event_id} to {endpoint_id} delivered in {latency_ms} ms",
            "One wide line for each attempt that succeeded; all of them are in GET /v1/attempts, too.",
        ),
        "attempts": Event(
            logging.INFO,
            "{delivered} delivered, {retry} failed to be tried again, {dead} given up in {seconds} s",
            "What a worker has done since its last such line, if anything.",
        ),
        "config_refreshed": Event(
            logging.DEBUG, "configuration of {tenants} tenants read again", "Endpoints or tenants were changed."
        ),
        "ingest_rejected": Event(
            logging.WARNING,
            "{rejected} events refused in {seconds} s: {reason}",
            "Coalesced: one line per reason and period, however many requests. Producers got 429 or 503.",
        ),
        "table_grown": Event(
            logging.DEBUG,
            "table {table} has grown, what reads it is planned anew",
            "Many times what it was: a plan made for a few rows may read all of them.",
        ),
        "tenant_spread": Event(
            logging.INFO,
            "tenant {tenant_id} is at home in {count} shards now, it was in {was}",
            "Its load asked for it. Set its spread to have a number of your own.",
        ),
        "endpoint_disabled": Event(
            logging.WARNING,
            "endpoint {endpoint_id} disabled: {reason}",
            "It answered 410, or failed for days. Its events wait; enable it again to deliver them.",
        ),
        "breaker_changed": Event(
            logging.INFO,
            "breaker of {origin} {state} after {failures} failures in a row",
            "Open: its receiver fails, deliveries wait and one probe at a time looks whether it is back.",
        ),
        "egress_down": Event(
            logging.ERROR,
            "our way out seems to be down: receivers that were well cannot be reached, and nobody answers",
            "Check this machine's network, resolver and egress proxy. Deliveries wait, and none is charged.",
        ),
        "egress_back": Event(
            logging.WARNING,
            "our way out is back after {seconds} s",
            "A receiver has answered. What waited is sent now.",
        ),
        "sign_in_refused": Event(
            logging.WARNING,
            "somebody at {address} tried to sign in to the dashboard with a key that is not valid",
            "A typing mistake, or guessing: an address waits for a minute after ten of them.",
        ),
        # Kafka as the journal.
        "kafka_lost": Event(
            logging.ERROR,
            "the brokers of Kafka do not acknowledge: {reason}",
            "Producers get 503 until they do; what was accepted before is safe. Once, not for each request.",
        ),
        "kafka_back": Event(logging.INFO, "the brokers of Kafka acknowledge again", "Events are accepted."),
        "kafka_topic_created": Event(
            logging.INFO,
            "topic {topic} created: {partitions} partitions, replication {replication}, {in_sync} in sync",
            "Three brokers give replication 3 and 2 in sync: any one may be lost. With fewer, a loss is a loss.",
        ),
        "kafka_topic_grown": Event(
            logging.INFO, "topic {topic} has {partitions} partitions now", "There are new shards; each has one."
        ),
        "kafka_unprepared": Event(
            logging.WARNING,
            "the topic could not be made, or get partitions for new shards: {reason}",
            "Workers try again every ten seconds; posts that need such a partition get 503 until then.",
        ),
        "pump_waits": Event(
            logging.WARNING,
            "records of Kafka are not taken over: {reason}",
            "Events are accepted and wait in Kafka until the database or the brokers are back. Lag is a metric.",
        ),
        "pump_goes_on": Event(logging.INFO, "records of Kafka are taken over again", "Nothing was lost or repeated."),
        "partition_unreadable": Event(
            logging.ERROR,
            "the partition of shard {shard} cannot be read: {reason}",
            "When records are gone that were not taken over (retention, a topic made anew), the shard stands still: see"
            " docs/kafka.md before anything is skipped.",
        ),
        "partition_read_anew": Event(
            logging.WARNING,
            "{records} records of the partition of shard {shard} did not come for ten seconds: it is read anew",
            "The Kafka client had stopped to bring them, or is very slow. Nothing is lost or repeated by it.",
        ),
        "record_refused": Event(
            logging.ERROR,
            "record {offset} of the partition of shard {shard} ({event_id}) was left out: {reason}",
            "It is no event, or the database refuses it. It stays in Kafka for as long as the topic keeps records.",
        ),
        # What was asked of deliveries by hand.
        "replay_created": Event(
            logging.INFO,
            "replay {replay_id} of tenant {tenant_id} created: {matched} deliveries match",
            "A bulk replay. What is to be delivered again goes into the journal bit by bit, behind fresh events.",
        ),
        "replay_ended": Event(
            logging.INFO, "replay {replay_id} is {state}", "Nothing more is appended; what was appended is delivered."
        ),
        "replay_failed": Event(
            logging.ERROR,
            "replay {replay_id} failed: {reason}",
            "The store refuses what it would append. Please report it; a replay with a narrower filter passes it by.",
        ),
        "event_replayed": Event(
            logging.INFO,
            "event {event_id} replayed to {deliveries} endpoints",
            "On request, by its tenant or an admin.",
        ),
        "control_appended": Event(
            logging.INFO,
            "{action} of event {event_id} asked for {deliveries} deliveries",
            "The owners of its shards act on it, in the order of the journal.",
        ),
        "alert_told": Event(
            logging.INFO,
            "{type} about {endpoint_id} told ({channel})",
            "An endpoint fails, has recovered, was disabled, or deliveries to it were given up: see its attempts.",
        ),
        "alert_failed": Event(
            logging.WARNING,
            "{type} about {endpoint_id} not told ({channel}, try {tries}): {reason}",
            "It is tried again, by mail and at the operator's URL for some hours, as an event until it is stored.",
        ),
        "alert_given_up": Event(
            logging.ERROR,
            "{type} about {endpoint_id} given up ({channel}, after {tries} tries): {reason}",
            "Nobody has heard of it in this channel: check the settings SMTP_… or ALERT_URL, and what they point to.",
        ),
        "internal_error": Event(
            logging.ERROR,
            "internal error in {where}: {error}",
            "A fault in Hookpost itself. Please report the line with its traceback.",
        ),
        "library_message": Event(
            logging.WARNING, "{logger}: {text}", "A warning of a library that Hookpost uses, passed on."
        ),
    }
)

COUNTERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "events_accepted": "Events durably accepted, duplicates not counted.",
        "rows_told": "Rows of the journal that a worker was told by an API process of its server, and need not read.",
        "events_duplicate": "Events answered from their idempotency key.",
        "connections_refused": "Clients refused because there were too many connections, in all or from their address.",
        "events_rejected": "Events refused because a queue or a limit was full.",
        "events_misfit": "Events refused because the payload does not satisfy the schema of its type.",
        "settles": "Settle transactions committed.",
        "settle_failures": "Settle transactions that failed.",
        "settle_rows_isolated": "Results set aside because they could not be stored.",
        "events_taken_over": "Events taken over from Kafka into the journal.",
        "records_refused": "Records of Kafka that were no events, or that the database refused.",
        "egress_outages": "Times that a worker found its own way out down.",
        "leases_lost": "Times a worker lost its shards.",
        "child_exits": "Processes that ended although nobody stopped them.",
        "deliveries_replayed": "Deliveries that bulk replays have put into the journal.",
        "attempts_rolled_up": "Attempts added to the rollups.",
        "alerts_told": "Alerts told, counted in each channel.",
        "alerts_given_up": "Alerts given up in one of their channels.",
        "payloads_moved": "Payloads moved out of the database into segments of the payload store.",
        "payloads_swept": "Objects that no event referred to, removed from the payload store.",
        "payload_reads_failed": "Reads of the payload store that failed; their deliveries are tried again.",
        "maintenance_failures": "Maintenance tasks that failed.",
        "internal_errors": "Faults in Hookpost itself.",
        "log_lines_failed": "Log lines that could not be written.",
    }
)

LABELLED: Final[Mapping[str, tuple[tuple[str, ...], str]]] = MappingProxyType(
    {
        "attempts": (("outcome", "error_code"), "Attempts recorded, by what became of them: delivered, retry, dead."),
        "dead_letters": (("reason",), "Deliveries that were given up."),
        "lease_changes": (("change",), "Shards acquired, released in order, or lost."),
    }
)
"""Counters with labels. The values of each are an enumeration of ours: nobody outside can make a new series."""

FROM_ZERO: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        "attempts": (("delivered", ""),),
        "dead_letters": tuple((reason.value,) for reason in DeadReason),
        "lease_changes": (("acquired",), ("released",), ("lost",)),
    }
)
"""Series that are shown before anything was counted. A share of a series that is not there is no share, so that an
alert on it stays silent when nothing at all is delivered; and a first value is no increase."""

HISTOGRAMS: Final[Mapping[str, tuple[tuple[float, ...], str]]] = MappingProxyType(
    {
        "delivery_seconds": (
            (
                0.005,
                0.01,
                0.025,
                0.05,
                0.1,
                0.25,
                0.5,
                1.0,
                2.5,
                5.0,
                10.0,
                30.0,
                60.0,
                300.0,
                3_600.0,
                21_600.0,
                86_400.0,
            ),
            "From the acceptance of an event to the end of the attempt that delivered it; with retries, no replays.",
        ),
        "settle_seconds": (
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
            "How long it took to write down what had happened, tries that failed included.",
        ),
    }
)
"""Distributions: the upper bounds of their buckets, in the order of size, and their meaning."""

GAUGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "in_flight_requests": "Requests to receivers under way.",
        "buffered_deliveries": "Deliveries that wait in a worker's memory.",
        "unsettled_attempts": "Attempts that are not written down yet.",
        "ingest_queue_events": "Events that wait for the store.",
        "ingest_queue_bytes": "Their payloads.",
        "process_cpu_seconds": "CPU that the process has used since it began.",
        "process_resident_bytes": "Memory of the process.",
    }
)
"""What a process tells of itself as it is now."""

counters: Final[Counter[str]] = Counter()
"""What this process counted so far; written through ``count`` only."""

labelled: Final[Counter[tuple[str, ...]]] = Counter()
"""The same of counters with labels, by name and the labels' values; written through ``count_by`` only."""


class Histogram:
    """One distribution: how many values fell below each bound and above the one before it, and the sum of all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, values: Sequence[float]) -> None:
        """Add values; many at a time, as this is done for every delivery."""
        bounds, counts = self.bounds, self.counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self.sum += sum(values)


histograms: Final[Mapping[str, Histogram]] = MappingProxyType(
    {name: Histogram(bounds) for name, (bounds, _) in HISTOGRAMS.items()}
)
"""What this process observed so far; written through ``observe`` only."""

_logger: Final = logging.getLogger(_LOGGER_NAME)

_seldom: Final[dict[str, tuple[float, int]]] = {}
"""Of lines that are not written each time: when the next one may be, and how many were left out since the last."""


def configure(process: str, format: LogFormat = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Send log lines of this process, named ``process``, to standard error.

    ``auto`` means text for a terminal and JSON lines for anything else. Calling it again replaces the earlier setup.
    Warnings of libraries come out in the same form.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is unknown; choose one of {', '.join(LEVELS)}")
    target = sys.stderr if stream is None else stream
    as_json = format == "json" or (format == "auto" and not target.isatty())
    handler = _Handler(target)
    handler.setFormatter(_JsonFormatter(process) if as_json else _TextFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _logger.setLevel(LEVELS[level])


def is_told(event_name: str) -> bool:
    """Is a line of this event written at the level that was chosen? For what is costly to put together."""
    return _logger.isEnabledFor(EVENTS[event_name].level)


def log(event_name: str, **fields: object) -> None:
    """Write the declared event, if it is due; fields beyond those of its message are appended to the line."""
    event = EVENTS.get(event_name)
    if event is None:
        raise UndeclaredError(f"log event {event_name!r} is not declared; add it to hookpost.telemetry.EVENTS")
    if not _logger.isEnabledFor(event.level):
        return
    if event.every_s:
        due, left_out = _seldom.get(event_name, (0.0, 0))
        now = time.monotonic()
        if now < due:
            _seldom[event_name] = due, left_out + 1
            return
        _seldom[event_name] = now + event.every_s, 0
        if left_out:
            fields["left_out"] = left_out
    shown = {name: _plain(name, value) for name, value in fields.items()}
    try:
        message = event.message.format_map(shown)
    except KeyError as error:
        raise UndeclaredError(f"log event {event_name!r} needs the field {error.args[0]!r}") from error
    _logger.log(event.level, "%s", message, extra={_EVENT_ATTRIBUTE: event_name, _FIELDS_ATTRIBUTE: shown})


def log_error(where: str, error: BaseException, **fields: object) -> None:
    """Write ``internal_error`` for an exception that ``where`` did not expect, and count it."""
    count("internal_errors")
    frames = "".join(traceback.format_exception(error))
    if len(frames) > TRACEBACK_CHARS_MAX:
        frames = "…" + frames[-TRACEBACK_CHARS_MAX:]
    summary = f"{type(error).__name__}: {error}"
    log("internal_error", where=where, error=summary, **fields, traceback=_Traceback(frames))


def count(name: str, by: int = 1) -> None:
    """Add to a declared counter."""
    if name not in COUNTERS:
        raise UndeclaredError(f"counter {name!r} is not declared; add it to hookpost.telemetry.COUNTERS")
    counters[name] += by


def count_by(name: str, found: Mapping[tuple[str, ...], int]) -> None:
    """Add to a declared counter with labels: how much, by the values of its labels."""
    if name not in LABELLED:
        raise UndeclaredError(f"counter {name!r} is not declared; add it to hookpost.telemetry.LABELLED")
    for values, by in found.items():
        labelled[(name, *values)] += by


def observe(name: str, values: Sequence[float]) -> None:
    """Add values to a declared histogram."""
    if name not in histograms:
        raise UndeclaredError(f"histogram {name!r} is not declared; add it to hookpost.telemetry.HISTOGRAMS")
    histograms[name].observe(values)


def safe_url(url: str) -> str:
    """The URL as it may be logged: without user, password, query and fragment, which carry secrets."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return "(invalid URL)"
    if not parts.scheme:
        return "(invalid URL)"
    shown_host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown_host}{port}{parts.path}"


# What a value looks like in a line. ---------------------------------------------------------------------------------


class _Traceback(str):
    """A text that may be longer than other values."""

    __slots__ = ()


_Plain = str | int | float | bool | None

_SECRET_NAMES: Final = frozenset(
    {
        "admin_key",
        "api_key",
        "authorization",
        "body",
        "cookie",
        "headers",
        "key",
        "password",
        "payload",
        "secret",
        "token",
    }
)
"""Fields with these names are masked whatever they hold: they do not belong into a log."""

_SECRET_TEXTS: Final = (
    re.compile(r"whsec_[A-Za-z0-9+/=_-]+"),  # a signing secret (Standard Webhooks)
    re.compile(r"\bh(?:pk|p|k|ookpost)_(?:[a-z]+_)?[A-Za-z0-9_-]{16,}"),  # an API key of ours
    re.compile(r"(?i)\bbearer\s+[^\s\"',]+"),
    re.compile(r"(?<=://)[^\s/@]+(?=@)"),  # user:password of a URL or a database address
    re.compile(r"(?i)(?<=\bpassword=)[^\s&]+"),
)

_CONTROL_NAMES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\x1b"}


def _plain(name: str, value: object) -> _Plain:
    """A value as it is written: numbers stay numbers, everything else is short, printable and without secrets."""
    if name in _SECRET_NAMES or isinstance(value, Secret | bytes | bytearray | memoryview):
        return _MASK
    match value:
        case None | bool() | int():
            return value
        case float():
            return round(value, 6)
        case _Traceback():
            return _escape(_mask(value))
        case str():
            return _escape(_mask(_cut(value)))
        case BaseException():
            return _escape(_mask(_cut(f"{type(value).__name__}: {value}")))
        case list() if name == "shards":
            return _cut(_ranges(value))
        case list() | tuple() | set() | frozenset() | range():
            return _escape(_mask(_cut(_join(value))))
        case _:
            return _escape(_mask(_cut(str(value))))


def _ranges(numbers: list[int]) -> str:
    """Numbers in their order as they are listed: ``0-15,20``; a worker may own a thousand shards."""
    starts = [n for at, n in enumerate(numbers) if at == 0 or numbers[at - 1] != n - 1]
    ends = [n for at, n in enumerate(numbers, 1) if at == len(numbers) or numbers[at] != n + 1]
    return ",".join(f"{start}-{end}" if start < end else f"{start}" for start, end in zip(starts, ends, strict=True))


def _join(values: Iterable[object]) -> str:
    return ",".join(str(_plain("", value)) for value in values)


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "…"


def _mask(text: str) -> str:
    for pattern in _SECRET_TEXTS:
        text = pattern.sub(_MASK, text)
    return text


def _escape(text: str) -> str:
    """No value ends a line, colours a terminal or breaks an encoder: what is not printable is written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else _CONTROL_NAMES.get(character, ascii(character)[1:-1])
        for character in text
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to the stream; a line that cannot be written is counted instead of stopping the work it tells of."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - the signature is logging's
        counters["log_lines_failed"] += 1


def _event_of(record: logging.LogRecord) -> tuple[str, str, Mapping[str, _Plain]]:
    """Name, message and fields of a record, which may come from a library that knows nothing of events."""
    name = getattr(record, _EVENT_ATTRIBUTE, None)
    if name is not None:
        return name, record.getMessage(), getattr(record, _FIELDS_ATTRIBUTE)
    try:
        text = record.getMessage()
    except (TypeError, ValueError):
        text = str(record.msg)
    if record.exc_info and record.exc_info[1] is not None:
        text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
    fields = {"logger": _plain("logger", record.name), "text": _plain("text", text)}
    return "library_message", EVENTS["library_message"].message.format_map(fields), fields


def _time_text(seconds: float) -> str:
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{milliseconds:03d}Z"


class _TextFormatter(logging.Formatter):
    """``time LEVEL process event message key=value``, for people."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        name, message, fields = _event_of(record)
        used = _fields_in(EVENTS[name].message)
        rest = "".join(f" {key}={_quoted(value)}" for key, value in fields.items() if key not in used)
        moment = _time_text(record.created)
        return f"{moment} {record.levelname:<7} {self._process:<10} {name}: {message}{rest}"


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, for machines. Fields stand beside time, level, process, event and message."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        name, message, fields = _event_of(record)
        line = dict(fields) | {
            "time": _time_text(record.created),
            "level": record.levelname.lower(),
            "process": self._process,
            "event": name,
            "message": message,
        }
        own = ("time", "level", "process", "event", "message")
        ordered = {key: line[key] for key in own} | {key: value for key, value in line.items() if key not in own}
        return json.dumps(ordered, ensure_ascii=False)


_FIELD: Final = re.compile(r"{(\w+)}")


def _fields_in(message: str) -> frozenset[str]:
    """The fields that a message names itself."""
    return frozenset(_FIELD.findall(message))


def _quoted(value: _Plain) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r"[\s\"=]", text) else text
