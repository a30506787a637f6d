"""The yardsticks: libcurl's loop, the bare server and the pipe of both, each up and at rest until its slice comes.

They are scenarios of their own, and stand beside every scenario whose figure is a ratio to one of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from hookpost.app.bench.ledger import VoidRun
from hookpost.app.bench.load import Load
from hookpost.app.bench.pipe import limit
from hookpost.app.bench.run import Figures, Run, number
from hookpost.app.bench.slices import Contender, Rounds, alternate

# The bare pipe is at its best only if it costs little more than its parts.
BARE_COST_MAX = 2.0
# Numbers that the ledger of `curl` has ready for a sender that nobody paces.
AHEAD = 100_000


def curl(run: Run) -> Figures:
    """libcurl's loop alone, sending as fast as it can to one receiver: no server, no signature."""
    with curl_at_rest(run) as contender:
        return _alone(run, "curl", contender)


def server(run: Run) -> Figures:
    """The bare HTTP server alone: it decodes, answers 202, and forgets."""
    with server_at_rest(run) as contender:
        return _alone(run, "server", contender)


def bare(run: Run) -> Figures:
    """The limit: the bare server and libcurl's loop with a pipe between them. Signed, delivered, nothing stored."""
    with at_rest(run) as yardsticks:
        rounds = alternate(run, yardsticks)
    for name in ("curl", "server"):
        run.results.setdefault(name, rounds.figures(name))
    ledger = yardsticks["bare"].load.ledger
    figures = {
        **rounds.figures("bare"), **rounds.latencies("bare"), "of_its_parts": of_its_parts(rounds),
        "published": ledger.accepted, "delivered": ledger.delivered, "duplicates": ledger.duplicates,
        "refused": ledger.refused, "signatures_checked": ledger.verified,
    }  # fmt: skip
    if number(figures, "of_its_parts") > BARE_COST_MAX:
        raise VoidRun(f"it costs {figures['of_its_parts']} times its parts", figures)
    return figures


def plain_curl(run: Run) -> Figures:
    """The same as ``curl``, but on an event loop with a future for each request."""
    with curl_at_rest(run, plain=True) as contender:
        return _alone(run, "plain_curl", contender)


def plain(run: Run) -> Figures:
    """The pipe as an application would have it: an ASGI application, a pipe, and libcurl on the event loop."""
    with bare_at_rest(run, plain=True) as contender:
        return _alone(run, "plain", contender)


def of_its_parts(rounds: Rounds) -> float:
    """CPU of the pipe's two processes by that of the loop and the server alone."""
    figures = {name: rounds.figures(name) for name in ("curl", "server", "bare")}
    spent_us = number(figures["bare"], "server_us") + number(figures["bare"], "sender_us")
    return round(spent_us / (number(figures["curl"], "curl_us") + number(figures["server"], "server_us")), 2)


def _alone(run: Run, name: str, contender: Contender) -> Figures:
    return alternate(run, {name: contender}).figures(name)


# ---- at rest --------------------------------------------------------------------------------------------------------


@contextmanager
def at_rest(run: Run) -> Iterator[dict[str, Contender]]:
    """All three; what they did is checked at the end."""
    with ExitStack() as stack:
        yield {
            "curl": stack.enter_context(curl_at_rest(run)),
            "server": stack.enter_context(server_at_rest(run)),
            "bare": stack.enter_context(bare_at_rest(run)),
        }


@contextmanager
def curl_at_rest(run: Run, *, pinned: bool = False, plain: bool = False) -> Iterator[Contender]:
    """A sender that waits for answers as long as nobody receives; ``pinned`` to the first core."""
    with run.load() as load:
        with limit(receiver=load.listen()[0].url, server=False, plain=plain) as sender:
            if pinned:
                sender.pin()
            yield Contender(subject=sender, load=load, work=partial(_receive_for, load))
            sender.release()
            load.receive(sender.ended)
            answers = sender.stop()
        if answers != {"200": load.ledger.delivered} or load.ledger.duplicates:
            raise VoidRun(f"{load.ledger.delivered} arrived, the sender counts {answers}")


def _receive_for(load: Load, seconds: float) -> None:
    until = load.now() + seconds

    def done() -> bool:
        if load.ledger.delivered + AHEAD > load.ledger.posted:
            load.ledger.open(AHEAD, load.now())
        return load.now() >= until

    load.receive(done)


@contextmanager
def server_at_rest(run: Run) -> Iterator[Contender]:
    """The server without a pipe."""
    with run.load() as load, limit() as processes:
        load.target(processes.url, "none")
        yield Contender(subject=processes, load=load, work=load.unbounded, rest=load.answered, per="event")


@contextmanager
def bare_at_rest(run: Run, *, plain: bool = False) -> Iterator[Contender]:
    """The pipe, or that of an application. Raises VoidRun unless all arrived, rightly signed."""
    key = secrets.token_bytes(24)
    with run.load() as load:
        listener = load.listen()[0]
        listener.key = key
        with limit(receiver=listener.url, key=key, plain=plain) as processes:
            load.target(processes.url, "none")
            yield Contender(subject=processes, load=load, work=load.sustained, rest=load.drain)
        ledger = load.ledger
        if ledger.accepted != ledger.delivered or ledger.forged:
            raise VoidRun(f"{ledger.accepted} published, {ledger.delivered} delivered, {ledger.forged} forged")


SCENARIOS = {scenario.__name__: scenario for scenario in (curl, server, bare, plain_curl, plain)}
