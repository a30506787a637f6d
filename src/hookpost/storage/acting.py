"""Who is acting: what the audit log says of a change, set once for a request and read where the change is written.

It travels beside the calls, as a trace does, so that no method of the store has to be handed what only the log needs.
Without a word it is Hookpost itself: a worker that disables an endpoint, maintenance that takes old rows away.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Actor:
    """``name``: ``key_…``, ``admin`` (the operator's own key), ``cli`` or ``hookpost``; ``address``: where from."""

    name: str
    address: str = ""


_acting: ContextVar[Actor] = ContextVar("acting", default=Actor("hookpost"))  # noqa: B039 - it is frozen


def act_as(actor: Actor) -> None:
    """From here on, in this task and those it makes."""
    _acting.set(actor)


def acting() -> Actor:
    """Who it is."""
    return _acting.get()
