"""How deep a payload may nest, and how long its numbers may be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy.json_bounds import JsonBounds

BOUNDS = JsonBounds(depth=4, number_chars=8)


@pytest.mark.parametrize(
    "payload",
    [
        b"1",
        b"[[[[1]]]]",
        b'{"a":{"b":{"c":{}}}}',
        b"[" + b"[]," * 50 + b"[]]",
        b'["[[[[[[{{{{","\\"[[[[[["]',
        b"12345678",
        b"[12345678,-1.23e-4,12345678]",
        b'"123456789012345678901234567890"',
        b'{"1234567890":"\\\\"}',
        b"",
    ],
)
def test_what_is_within_the_bounds_passes(payload: bytes) -> None:
    assert BOUNDS.fault(payload) is None


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (b"[[[[[1]]]]]", "nest 4"),
        (b"[{" * 50_000, "nest 4"),
        (b'["[",[[[[[', "nest 4"),
        (b'["\\"",[[[[[', "nest 4"),
        (b"123456789", "8 characters"),
        (b"[1,-12345678]", "8 characters"),
        (b'{"a":"x","b":1.00000000e+99999}', "8 characters"),
        (b"1" * 1_000_000, "8 characters"),
    ],
)
def test_what_is_beyond_is_named(payload: bytes, named: str) -> None:
    assert named in str(BOUNDS.fault(payload))


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=30) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)


def depth_of(value: object) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


def numbers_of(value: object) -> list[str]:
    if isinstance(value, list | dict):
        return [each for inner in (value.values() if isinstance(value, dict) else value) for each in numbers_of(inner)]
    return [json.dumps(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


@given(VALUES, st.booleans())
def test_it_says_what_a_parser_would(value: object, ascii_: bool) -> None:
    fault = BOUNDS.fault(json.dumps(value, ensure_ascii=ascii_).encode("utf-8", "surrogatepass"))
    too_deep, too_long = depth_of(value) > 4, any(len(number) > 8 for number in numbers_of(value))
    assert (fault is not None) is (too_deep or too_long)
