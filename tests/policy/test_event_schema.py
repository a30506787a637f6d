"""Schemas of event types: what is enforced, what is refused, and that no schema can be made to cost much."""

from __future__ import annotations

import json
import time
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookpost.policy.event_schema import PayloadSchema, SchemaBounds, SchemaRefused, check_schema

BOUNDS = SchemaBounds()
ORDER: dict[str, Any] = {
    "type": "object",
    "required": ["amount"],
    "properties": {"amount": {"type": "integer", "minimum": 1}, "mail": {"format": "email"}, "a/b~": {"maxLength": 3}},
    "additionalProperties": False,
}


def compiled(schema: dict[str, Any], bounds: SchemaBounds = BOUNDS) -> PayloadSchema:
    return PayloadSchema(check_schema(schema, bounds), bounds)


def pointers(schema: dict[str, Any], payload: bytes) -> list[str]:
    return sorted(fault.pointer for fault in compiled(schema).faults(payload))


@pytest.mark.parametrize(
    ("payload", "at"),
    [
        (b'{"amount": 1}', []),
        (b'{"amount": 2, "mail": "a@example.com", "a/b~": "abc"}', []),
        (b'{"amount": 0}', ["/amount"]),
        (b'{"amount": "1"}', ["/amount"]),
        (b"{}", [""]),
        (b"[]", [""]),
        (b"null", [""]),
        (b'{"amount": 1, "mail": "nobody"}', ["/mail"]),
        (b'{"amount": 1, "a/b~": "abcd", "other": 1}', ["", "/a~1b~0"]),
    ],
)
def test_each_fault_is_told_with_its_place_as_a_json_pointer(payload: bytes, at: list[str]) -> None:
    assert pointers(ORDER, payload) == at


def test_what_is_told_of_a_payload_holds_nothing_of_its_values() -> None:
    schema = {"properties": {"card": {"type": "integer"}, "name": {"maxLength": 3}, "kind": {"enum": ["a", "b"]}}}
    faults = compiled(schema).faults(b'{"card": "4111-1111", "name": "somebody", "kind": "secret-kind"}')
    assert len(faults) == 3
    assert not any(value in str(faults) for value in ("4111", "somebody", "secret-kind"))


def test_no_more_is_told_than_helps() -> None:
    faults = compiled({"items": {"type": "string", "enum": ["x" * 1000]}}).faults(json.dumps([1] * 500).encode())
    assert 0 < len(faults) <= 20
    assert all(len(fault.message) <= 300 for fault in faults)


@pytest.mark.parametrize("payload", [b'"\\ud800"', b'{"a": "\\udc00x"}', b"1e999", b"[" * 250 + b"]" * 250])
def test_a_payload_that_no_validator_can_hold_is_a_fault_and_no_error(payload: bytes) -> None:
    assert isinstance(compiled({"type": ["object", "array", "string", "number"]}).faults(payload), list)
    assert compiled({"type": "null"}).faults(payload)


@pytest.mark.parametrize(
    ("dialect", "items"),
    [
        ("http://json-schema.org/draft-07/schema#", {"items": [{"type": "integer"}]}),
        ("https://json-schema.org/draft/2020-12/schema", {"prefixItems": [{"type": "integer"}]}),
        (None, {"prefixItems": [{"type": "integer"}]}),
    ],
)
def test_a_schema_may_say_its_dialect_and_is_of_2020_12_otherwise(dialect: str | None, items: dict[str, Any]) -> None:
    schema = items if dialect is None else {"$schema": dialect, **items}
    assert compiled(schema).faults(b'["x"]') and not compiled(schema).faults(b'[1, "x"]')


def doubling(levels: int) -> dict[str, Any]:
    parts = {f"p{n}": {"allOf": [{"$ref": f"#/$defs/p{n - 1}"}] * 2} for n in range(1, levels)}
    return {"$defs": {"p0": {"type": "object"}, **parts}, "$ref": f"#/$defs/p{levels - 1}"}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


INNER = {"properties": {"a": {"$ref": "#"}}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another document": ({"$ref": "https://example.com/schema.json"}, "never fetched|is ever fetched"),
    "a file": ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "is ever fetched"),
    "metadata": ({"$ref": "http://169.254.169.254/latest/meta-data/"}, "is ever fetched"),
    "a relative document": ({"$id": "https://example.com/a", "$ref": "b"}, "is ever fetched"),
    "a base of its own inside": ({"properties": {"a": {"$id": "http://127.0.0.1/", "$ref": "#/x"}}}, r"\$id"),
    "a dialect from anywhere": ({"$schema": "http://127.0.0.1/meta"}, "must be one of"),
    "a dialect from a file": ({"$schema": "file:///etc/passwd"}, "must be one of"),
    "draft 4, whose id moves references": ({"$schema": "http://json-schema.org/draft-04/schema#"}, "must be one of"),
    "a dialect inside": ({"items": {"$schema": "http://json-schema.org/draft-07/schema#"}}, r"\$schema"),
    "a part that takes the place of the whole": (
        {"$ref": "#/$defs/a", "$defs": {"a": {}, "x": {"$id": "json-schema:///", "$defs": {"a": doubling(9)}}}},
        r"\$id",
    ),
    "a part that does so where no schema stands": ({"x-note": [{"$id": "json-schema:///"}]}, r"\$id"),
    "a dynamic reference": ({"$dynamicRef": "#a"}, "dynamicRef"),
    "an anchor": ({"$anchor": "a", "properties": {"b": {"$ref": "#a"}}}, "anchor|fetched"),
    "nowhere": ({"$ref": "#/$defs/none"}, "leads nowhere"),
    "no schema": ({"$ref": "#/title", "title": "x"}, "does not lead to a schema"),
    "itself": ({"$ref": "#"}, "one and the same value"),
    "itself by two": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        "one and the same value",
    ),
    "twice the next, and so on": (doubling(31), "one and the same value"),
    "twice itself a level": ({"oneOf": [INNER, INNER], "type": "object"}, "one and the same value"),
    "twice itself by a pattern": (
        {"patternProperties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}},
        "one and the same value",
    ),
    "twice itself by items": ({"items": {"$ref": "#"}, "contains": {"$ref": "#"}}, "one and the same value"),
    "looked at again a level": ({"anyOf": [INNER], "unevaluatedProperties": False}, "one and the same value"),
    "look-ahead": ({"pattern": "(?=a)b"}, "not supported"),
    "back reference": ({"pattern": r"(a)\1"}, "not supported"),
    "a pattern that grows": ({"pattern": "((a{100}){100}){100}"}, "not supported"),
    "many patterns for one key": ({"patternProperties": {f"^{n}": True for n in range(50)}}, "one and the same value"),
    "many patterns in all": ({"properties": {f"k{n}": {"pattern": f"^{n}"} for n in range(200)}}, "use fewer"),
    "large patterns": ({"properties": {f"k{n}": {"pattern": rf"\\p{{L}}+{n}"} for n in range(100)}}, "use fewer"),
    "patterns to be compiled at each event": ({"format": "regex"}, "format regex"),
    "too deep": (nested(40), "nest"),
    "too large": ({"description": "x" * 40_000}, "bytes"),
    "a surrogate": ({"title": "\ud800"}, "surrogate"),
    "no type": ({"type": "whatever"}, "not valid"),
    "no number": ({"properties": {"a": {"minLength": -1}}}, "minimum of 0"),
}


@pytest.mark.parametrize(("schema", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_schema_that_could_hurt_is_refused_with_the_reason(schema: dict[str, Any], reason: str) -> None:
    began = time.process_time()
    with pytest.raises(SchemaRefused, match=reason):
        check_schema(schema, BOUNDS)
    assert time.process_time() - began < 20.0


def test_p12_no_pattern_takes_more_than_linear_time() -> None:
    began = time.process_time()
    schema = compiled({"pattern": "^(a+)+$"})
    assert schema.faults(b'"%b!"' % (b"a" * 200_000))
    assert time.process_time() - began < 20.0


@pytest.mark.parametrize(
    "pattern", ["^[0-9a-f]{8}-[0-9a-f]{4}$", r"^\S+@\S+\.\S+$", r"^\+?[1-9]\d{1,14}$", r"^\p{L}+$"]
)
def test_patterns_of_every_day_are_accepted(pattern: str) -> None:
    assert compiled({"properties": {f"k{n}": {"pattern": pattern} for n in range(20)}}).cost <= BOUNDS.cost_max


def test_the_slowest_pattern_there_may_be_takes_no_longer_than_the_bound_says() -> None:
    """Each character is a decision, and no memory of states is large enough."""
    schema = compiled({"pattern": "(?:[01]|[01][01])*1(?:[01][01]?){160}x"})
    rng = Random(1)
    longest = BOUNDS.work_max // schema.cost - 2
    payload = b'"%b"' % bytes(rng.choice(b"01") for _ in range(longest))
    began = time.process_time()
    assert schema.faults(payload)
    assert time.process_time() - began < 60.0, "some 0.5 s on a usual machine"
    assert "bytes" in schema.faults(payload[:-1] + b'xx"')[0].message


def test_a_name_at_the_top_changes_nothing_and_words_of_schemas_may_be_names_of_properties() -> None:
    """`$id` of a meta-schema, which the validator knows by that name: `#` is this schema all the same."""
    named = {"$id": "http://json-schema.org/draft-07/schema", "$ref": "#/definitions/nonNegativeInteger",
             "definitions": {"nonNegativeInteger": {"type": "string"}}}  # fmt: skip
    assert not compiled(named).faults(b'"x"') and compiled(named).faults(b"1")
    about_schemas = {"properties": {"$id": {"type": "string"}, "$schema": {"type": "string"}, "properties": True}}
    assert pointers(about_schemas, b'{"$id": 1, "$schema": "x"}') == ["/$id"]


def test_a_schema_that_refers_to_itself_once_a_level_is_of_use() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}, "required": ["n"]}
    assert pointers(tree, b'{"n": 1, "left": {"n": 2, "right": {}}}') == ["/left/right"]


def test_a_payload_that_would_take_long_is_refused_before_it_is_looked_at() -> None:
    tight = compiled(ORDER, SchemaBounds(work_max=1000))
    assert not tight.faults(b'{"amount": 1}')
    [fault] = tight.faults(b'{"amount": 1%b}' % (b" " * 2000))
    assert "bytes" in fault.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYWORDS = ("type", "properties", "items", "$ref", "allOf", "enum", "pattern", "$defs", "required", "not", "prefixItems",
            "patternProperties", "contains", "dependentSchemas", "unevaluatedProperties", "format", "if", "$id")  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYWORDS), JSON | st.sampled_from(["#", "#/properties", "email"])), JSON)
@settings(max_examples=150, deadline=None)
def test_whatever_is_given_as_a_schema_is_refused_or_answers(schema: dict[str, Any], value: Any) -> None:
    try:
        text = check_schema(schema, BOUNDS)
    except SchemaRefused as error:
        assert str(error)
        return
    assert all(fault.message for fault in PayloadSchema(text, BOUNDS).faults(json.dumps(value).encode()))
