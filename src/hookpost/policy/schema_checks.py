"""Payloads against the schemas of their types. Pure; remembers compiled schemas, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from hookpost.policy.event_schema import Fault, PayloadSchema, SchemaBounds, SchemaRefused

__all__ = ["WORK_A_TURN", "SchemaChecks"]

# Compiled schemas that are kept, in bytes: thousands of usual ones, a dozen of those that are made to be large.
KEPT_BYTES_MAX = 64 * 1024 * 1024
# Checked at once before others have their turn, as cost times bytes: a few hundredths of a second.
WORK_A_TURN = 1024 * 1024


class SchemaChecks:
    """Checks payloads; schemas are compiled when they are needed first. ``schemas`` are a tenant's, by type."""

    def __init__(self, bounds: SchemaBounds) -> None:
        self._bounds = bounds
        self._compiled: OrderedDict[str, PayloadSchema] = OrderedDict()
        self._bytes = 0

    def faults(self, schemas: Mapping[str, str], type: str, payload: bytes) -> list[Fault]:
        """Why the payload does not satisfy the schema of its type; none if it does, or if the type has no schema."""
        schema = schemas.get(type)
        if schema is None:
            return []
        try:
            return self._get(schema).faults(payload)
        except SchemaRefused as error:  # of another release, or the bounds are narrower since
            return [Fault("", f"the schema of this type is not accepted any more, so nothing satisfies it: {error}")]

    def work(self, schemas: Mapping[str, str], type: str, payload: bytes) -> int:
        """What that check costs at most, in the unit of ``WORK_A_TURN``."""
        schema = schemas.get(type)
        try:
            return 0 if schema is None else self._get(schema).cost * len(payload)
        except SchemaRefused:
            return WORK_A_TURN

    def _get(self, text: str) -> PayloadSchema:
        schema = self._compiled.get(text)
        if schema is None:
            schema = self._compiled[text] = PayloadSchema(text, self._bounds)
            self._bytes += schema.bytes
            while self._bytes > KEPT_BYTES_MAX and len(self._compiled) > 1:
                self._bytes -= self._compiled.popitem(last=False)[1].bytes
        self._compiled.move_to_end(text)
        return schema
