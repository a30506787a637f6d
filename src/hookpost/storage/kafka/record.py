"""An event as a record of Kafka: msgpack, an array whose first item is the version of the format.

Relies on msgspec. Promises: a record that this version cannot read is an error, never another event; what is written
here is read by every later version. New fields go to the end of the array, with a default.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from hookpost.model import PayloadRef
from hookpost.storage.contract import DataRejected, NewEvent, StoreUnavailable

VERSION = 1
# A broker takes a megabyte as a batch unless it was told otherwise; a batch holds one record at least, and its frame.
RECORD_BYTES_MAX = 1_000_000


class UnreadableRecord(ValueError):
    """Not a record of ours."""


class Record(msgspec.Struct, array_like=True, gc=False):
    """What lies in Kafka of an event. Ids are 16 bytes each. ``version``: of the tenant's configuration that it was
    matched with; ``targeted``: by the producer itself."""

    format: int
    event_id: bytes
    tenant_id: bytes
    type: str
    payload: bytes
    ref: str | None
    owed: bytes
    version: int
    accepted_at: float
    key: str | None = None
    request_hash: bytes | None = None
    trace_id: bytes | None = None
    span: bytes | None = None
    targeted: bool = False
    without: bytes | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def encode(event: NewEvent, *, version: int, accepted_at: float) -> bytes:
    """Raises DataRejected for what PostgreSQL would refuse later, and for a record that is too large."""
    stored = type(event.payload) is PayloadRef
    if "\0" in event.type:
        raise DataRejected("the type contains a NUL")
    try:
        data = _encoder.encode(
            Record(
                VERSION,
                event.event_id.bytes,
                event.tenant_id.bytes,
                event.type,
                b"" if stored else event.payload,  # type: ignore[arg-type] # else they are bytes
                str(event.payload) if stored else None,
                b"".join([endpoint_id.bytes for endpoint_id in event.owed]),
                version,
                accepted_at,
                event.key,
                event.request_hash,
                None if event.trace_id is None else event.trace_id.bytes,
                event.span,
                event.targeted,
                None if event.without is None else event.without.bytes,
            )
        )
    except (UnicodeEncodeError, OverflowError) as error:
        raise DataRejected(f"the event cannot be written: {error}") from error
    if len(data) > RECORD_BYTES_MAX:
        raise DataRejected(f"the event takes {len(data)} bytes in Kafka, {RECORD_BYTES_MAX} is the limit")
    return data


def decode(data: bytes) -> tuple[NewEvent, int, float]:
    """The event, the config version it was matched with, and when it was accepted. Raises UnreadableRecord;
    StoreUnavailable for a format newer than this program: it is to wait for a newer one, and not to be left out."""
    try:
        found = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise UnreadableRecord(str(error)) from error
    if found.format != VERSION:
        raise StoreUnavailable(f"a record has format {found.format}, and this program reads {VERSION}: upgrade it")
    owed = found.owed
    event = NewEvent(
        UUID(bytes=found.event_id),
        UUID(bytes=found.tenant_id),
        found.type,
        found.payload if found.ref is None else PayloadRef.parse(found.ref),
        tuple([UUID(bytes=owed[at : at + 16]) for at in range(0, len(owed), 16)]),
        found.key,
        found.request_hash,
        None if found.trace_id is None else UUID(bytes=found.trace_id),
        found.span,
        found.targeted,
        None if found.without is None else UUID(bytes=found.without),
    )
    return event, found.version, found.accepted_at
