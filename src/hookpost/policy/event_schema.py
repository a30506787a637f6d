"""JSON Schemas of event types: what is accepted as one, and whether a payload satisfies it.

Pure: a schema is compiled, and payloads are checked, without a clock, a socket or a file. The validator is told to
fetch nothing and to match patterns in linear time; what it costs is bounded by `schema_cost` before it ever runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jsonschema_rs
import msgspec

from hookpost.policy.json_bounds import JsonBounds
from hookpost.policy.schema_cost import SchemaRefused, cost_of

__all__ = ["Fault", "PayloadSchema", "SchemaBounds", "SchemaRefused", "check_schema"]

# Sizes of a compiled pattern in bytes, tried one after the other: a UUID fits into the first, `\\p{L}+` into 64 KiB.
PATTERN_SIZES = tuple(1024 * kib for kib in (4, 8, 16, 32, 64, 128))
# At worst one character is tried in all states of a pattern: 20 µs with 64 KiB of them; a look takes 25 ns (ADR 27).
PATTERN_BYTES_A_LOOK = 80
# What a pattern remembers of its states while it matches.
PATTERN_MEMORY_BYTES = 32 * 1024
# All patterns of one schema, compiled, with that memory.
PATTERNS_BYTES_MAX = 4 * 1024 * 1024
# A compiled schema is some so many times as large as its text.
NODE_BYTES_A_CHAR = 20
# What is wrong with a payload beyond that is told after these are mended.
FAULTS_MAX = 20
# Of one sentence of the validator: it may name all alternatives of an enum.
MESSAGE_CHARS_MAX = 300
# Values do not stand in what is told of them: payloads are personal data, and answers end up in logs.
_MASK = "the value"
_DIALECTS = ("draft-04", "draft-06", "draft-07", "2019-09", "2020-12")
_PATTERNS = {
    size: jsonschema_rs.RegexOptions(size_limit=size, dfa_size_limit=PATTERN_MEMORY_BYTES) for size in PATTERN_SIZES
}


@dataclass(frozen=True, slots=True)
class SchemaBounds:
    """``bytes_max``: of a schema as JSON; ``depth_max``: objects and arrays in it, inside one another; ``cost_max``:
    nodes that look at one place (see schema_cost); ``work_max``: cost times bytes of a payload."""

    bytes_max: int = 32 * 1024
    depth_max: int = 32
    cost_max: int = 2048
    work_max: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at one place of a payload. ``pointer``: RFC 6901, empty for the payload itself."""

    pointer: str
    message: str


def check_schema(schema: Mapping[str, Any], bounds: SchemaBounds) -> str:
    """The schema as it is stored, as JSON text. Raises SchemaRefused with where and what to change."""
    try:
        text = msgspec.json.encode(schema)
    except (ValueError, RecursionError):
        raise SchemaRefused("", "it holds an unpaired surrogate, or nests far too deep") from None
    if len(text) > bounds.bytes_max:
        raise SchemaRefused("", f"a schema may have {bounds.bytes_max} bytes as JSON, this one has {len(text)}")
    beyond = JsonBounds(depth=bounds.depth_max).fault(text)
    if beyond is not None:
        raise SchemaRefused("", beyond)
    PayloadSchema(text.decode(), bounds)
    return text.decode()


class PayloadSchema:
    """A compiled schema."""

    def __init__(self, text: str, bounds: SchemaBounds) -> None:
        """Raises SchemaRefused."""
        schema = msgspec.json.decode(text)
        patterns = _Patterns()
        self.cost = cost_of(schema, bounds.cost_max, patterns.cost)
        # In memory, roughly.
        self.bytes = NODE_BYTES_A_CHAR * len(text) + patterns.bytes
        self._work_max = bounds.work_max
        try:
            self._validator = jsonschema_rs.validator_for(
                schema,
                offline=True,
                validate_formats=True,
                ignore_unknown_formats=True,
                pattern_options=_PATTERNS[PATTERN_SIZES[-1]],
                mask=_MASK,
            )
        except jsonschema_rs.ValidationError as error:
            raise SchemaRefused(_pointer(error.instance_path), _reason(error)) from None
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            raise SchemaRefused("", str(error)[:MESSAGE_CHARS_MAX]) from None

    def faults(self, payload: bytes) -> list[Fault]:
        """What is wrong with a payload that is JSON, the first few of all faults; none: it satisfies the schema."""
        if self.cost * len(payload) > self._work_max:
            return [
                Fault(
                    "",
                    f"payloads of this type may have {self._work_max // self.cost} bytes, as its schema takes long to "
                    "check: simplify the schema, or post less",
                )
            ]
        try:
            value = msgspec.json.decode(payload)
            if self._validator.is_valid(value):
                return []
            errors = list(islice(self._validator.iter_errors(value), FAULTS_MAX))
        except (ValueError, RecursionError):
            return [
                Fault("", "holds what no schema can be checked against: unpaired surrogates, or a number too large")
            ]
        return [Fault(_pointer(error.instance_path), error.message[:MESSAGE_CHARS_MAX]) for error in errors]


class _Patterns:
    """What the patterns of one schema cost, each compiled but once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._sizes: dict[str, int] = {}

    def cost(self, pattern: str) -> int:
        """In looks at a place. Raises SchemaRefused when all of them take too much."""
        size = self._sizes.get(pattern)
        if size is None:
            size = self._sizes[pattern] = _compiled_size(pattern)
            self.bytes += size + PATTERN_MEMORY_BYTES
            if self.bytes > PATTERNS_BYTES_MAX:
                raise SchemaRefused("", f"its patterns take more than {PATTERNS_BYTES_MAX} bytes: use fewer of them")
        return size // PATTERN_BYTES_A_LOOK


def _compiled_size(pattern: str) -> int:
    for size in PATTERN_SIZES:
        try:
            jsonschema_rs.validator_for({"pattern": pattern}, offline=True, pattern_options=_PATTERNS[size])
        except ValueError:  # of the last one the reason is told when the schema is compiled
            continue
        return size
    return PATTERN_SIZES[-1]


def _reason(error: jsonschema_rs.ValidationError) -> str:
    """Why the schema is none."""
    if error.instance_path and error.instance_path[-1] == "pattern":
        return (
            "this pattern is not supported: no look-around, no back references, and no more than "
            f"{PATTERN_SIZES[-1]} bytes when it is compiled (maxLength is better than .{{1,200}})"
        )
    if "meta-schema" in error.message:
        return f"$schema must be one of the dialects {', '.join(_DIALECTS)} of json-schema.org, or be left out"
    return error.message[:MESSAGE_CHARS_MAX]


def _pointer(path: list[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
