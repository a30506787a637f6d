"""What a JSON Schema may cost to check, found out before it is ever used: how many of its nodes at most look at one and
the same place of a payload.

A validator has no clock, and a schema is a program that a tenant writes. Parts that each refer to the next one twice
double the work with each part, and one that refers to itself twice doubles it with each level of the payload. So the
schema is walked as a validator would, over all places that a payload may have: a place is known by the nodes that look
at it, and how often each does. Where that number passes the bound the schema is refused, so that what remains costs
time in proportion to the payload.

Pure. Two simplifications, both towards the dear side: a pattern may match every key, and ``unevaluated…`` looks at what
stands beside it once more. References go into the schema itself only (``#`` or ``#/…``, RFC 6901): nothing is fetched,
and what a reference means can be told from the text alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

__all__ = ["SchemaRefused", "cost_of"]

# Looks at one place while walking: a schema of 32 KiB has some 2,000 nodes; so many take 0.1 s.
STEPS_MAX = 20_000
# What costs more than a look (some 25 ns, measured in ADR 27).
UNIQUE_COST = FORMAT_COST = 8
# Values of `enum` and names of `required` that cost as much as one node.
VALUES_A_NODE = 8
# What looks at the same place as the node it stands in.
_LISTS = ("allOf", "anyOf", "oneOf")
_SINGLES = ("not", "if", "then", "else")
_MAPS = ("dependentSchemas", "dependencies")
# What would make a reference mean something that the text alone does not tell.
_FOREIGN = ("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor", "$anchor", "$vocabulary")

Node = Mapping[str, Any] | bool


class SchemaRefused(Exception):
    """``pointer``: where in the schema (RFC 6901); the text says what to do."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(message)
        self.pointer = pointer


def cost_of(schema: Mapping[str, Any], cost_max: int, pattern_cost: Callable[[str], int]) -> int:
    """The most nodes that look at one place of a payload, hard keywords counted for what they cost (a pattern is tried
    at each character in all its states at once). Raises SchemaRefused for more than ``cost_max``, and for references
    to anywhere else."""
    return _Walk(schema, cost_max, pattern_cost).run()


class _Walk:
    def __init__(self, root: Mapping[str, Any], cost_max: int, pattern_cost: Callable[[str], int]) -> None:
        self._pattern_cost = pattern_cost
        self._root = root
        self._cost_max = cost_max
        self._steps = 0
        self._nodes: dict[int, Mapping[str, Any]] = {}
        self._referred: dict[str, Node] = {}

    def run(self) -> int:
        """Place after place, each kind of them once."""
        first = self._place([(self._root, 1)], 0)
        seen, waiting, most = {first[0]}, [first], first[1]
        while waiting:
            place, _ = waiting.pop()
            for inner in self._below(place):
                most = max(most, inner[1])
                if inner[0] not in seen:
                    seen.add(inner[0])
                    waiting.append(inner)
        return most

    def _place(self, looking: list[tuple[Node, int]], toll: int) -> tuple[frozenset[tuple[int, int]], int]:
        """All nodes that look at a place, and how often, when these do; and what they cost."""
        counts: Counter[int] = Counter()
        cost = toll
        stack = list(looking)
        while stack:
            node, times = stack.pop()
            self._step()
            if isinstance(node, bool):
                cost += times
            else:
                self._nodes[id(node)] = node
                counts[id(node)] += times
                cost += times * self._own_cost(node)
                again = 2 if "unevaluatedProperties" in node or "unevaluatedItems" in node else 1
                stack.extend((inner, times * again) for inner in self._beside(node))
            if cost > self._cost_max:
                raise SchemaRefused(
                    "",
                    f"more than {self._cost_max} of its parts would look at one and the same value: refer to the same "
                    "part less often, and use fewer patterns and alternatives",
                )
        return frozenset(counts.items()), cost

    def _own_cost(self, node: Mapping[str, Any]) -> int:
        if node.get("format") == "regex":
            raise SchemaRefused("", "format regex is not supported: to compile what is posted takes too long")
        cost = 1 + FORMAT_COST * ("format" in node) + UNIQUE_COST * bool(node.get("uniqueItems"))
        if isinstance(pattern := node.get("pattern"), str):
            cost += self._pattern_cost(pattern)
        for name in ("enum", "required", "dependentRequired"):
            values = node.get(name)
            cost += len(values) // VALUES_A_NODE if isinstance(values, list | Mapping) else 0
        return cost

    def _step(self) -> None:
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise SchemaRefused("", "it is too intricate to tell what it costs: make it smaller")

    def _beside(self, node: Mapping[str, Any]) -> Iterator[Node]:
        """The nodes that look at the same place as this one."""
        for name in _FOREIGN:
            if name in node:
                raise SchemaRefused("", f"{name} is not supported: refer by $ref to #/$defs/…")
        if "$id" in node and node is not self._root:
            raise SchemaRefused("", "$id may stand at the top only: refer by $ref to #/$defs/…")
        if "$ref" in node:
            yield self._target(node["$ref"])
        for name in _LISTS:
            yield from _schemas(node.get(name))
        for name in _SINGLES:
            yield from _schemas([node.get(name)])
        for name in _MAPS:
            yield from _schemas(_values(node, name))

    def _target(self, reference: Any) -> Node:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise SchemaRefused("", f"$ref {_short(reference)}: only # and #/… are followed, nothing is ever fetched")
        if reference not in self._referred:
            self._referred[reference] = self._resolved(reference)
        return self._referred[reference]

    def _resolved(self, reference: str) -> Node:
        found: Any = self._root
        for part in unquote(reference[1:]).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isascii() and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise SchemaRefused("", f"$ref {_short(reference)} leads nowhere")
        if not isinstance(found, Mapping | bool):
            raise SchemaRefused("", f"$ref {_short(reference)} does not lead to a schema")
        return found

    def _below(self, place: frozenset[tuple[int, int]]) -> Iterator[tuple[frozenset[tuple[int, int]], int]]:
        """The places right below one: each key that is named, any other key, each numbered item, any other item."""
        looking = [(self._nodes[node], times) for node, times in place]
        for named_in, rest_in, always_in, patterns_in in (_KEYS, _ITEMS):
            named = {key for node, _ in looking for key in _named(node, named_in)}
            for key in (*sorted(named), None):
                inner: list[tuple[Node, int]] = []
                toll = 0
                for node, times in looking:
                    self._step()
                    own = _named(node, named_in)
                    inner += [
                        (each, times)
                        for each in ([own[key]] if key is not None and key in own else _singles(node, rest_in))
                    ]
                    inner += [(each, times) for each in _singles(node, always_in)]
                    for keyword in patterns_in:
                        patterns = node.get(keyword)
                        if isinstance(patterns, Mapping):
                            inner += [(each, times) for each in _schemas(list(patterns.values()))]
                            toll += times * sum(map(self._pattern_cost, patterns))
                if inner:
                    yield self._place(inner, toll)


# Below an object and below an array: what names its places, what is for all others, what is for all, what has patterns.
_KEYS = ("properties", ("additionalProperties", "unevaluatedProperties"), ("propertyNames",), ("patternProperties",))
_ITEMS = ("prefixItems", ("items", "additionalItems", "unevaluatedItems"), ("contains",), ())


def _named(node: Mapping[str, Any], keyword: str) -> Mapping[str, Node]:
    """The schemas of places that have a name, by it; items by their number (`items` was a list before 2020-12)."""
    given = node.get(keyword)
    if keyword == "prefixItems":
        numbered = given if isinstance(given, list) else node.get("items")
        given = {str(at): each for at, each in enumerate(numbered)} if isinstance(numbered, list) else {}
    return {key: each for key, each in given.items() if _is_schema(each)} if isinstance(given, Mapping) else {}


def _singles(node: Mapping[str, Any], keywords: tuple[str, ...]) -> Iterator[Node]:
    return _schemas([node.get(keyword) for keyword in keywords])


def _values(node: Mapping[str, Any], keyword: str) -> list[Any]:
    given = node.get(keyword)
    return list(given.values()) if isinstance(given, Mapping) else []


def _schemas(values: Any) -> Iterator[Node]:
    """Those that are schemas: what else may stand there is for the meta-schema to refuse."""
    return (value for value in values if _is_schema(value)) if isinstance(values, list) else iter(())


def _is_schema(value: Any) -> bool:
    return isinstance(value, Mapping | bool)


def _short(value: Any) -> str:
    return repr(value)[:80]
