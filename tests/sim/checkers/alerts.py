"""Alerts: what happened to an endpoint is told once, by an event, and nothing else is told of it.

Of deaths each is counted in one alert, at most once in so many seconds, unless the endpoint is deleted before. Two
generations of one delivery that die in one settle are one death, as there is one dead letter of them. That it
fails is told behind so many failures at least, and again only when its recovery was told between.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from datetime import datetime
from typing import Any
from uuid import UUID

from tests.sim.system.trace import Answered, Began, Configured, Ended, Settled, Stored, Trace, check

PREFIX = "hookpost."
DEAD, FAILING, RECOVERED = "hookpost.delivery.dead", "hookpost.endpoint.failing", "hookpost.endpoint.recovered"
# Times are told in milliseconds.
ROUNDED_S = 2e-3


class _Books:
    def __init__(self, began: Began) -> None:
        self.began = began
        self.died: dict[UUID, list[UUID]] = defaultdict(list)
        self.settle: tuple[float, str, set[tuple[UUID, UUID]]] = (-1.0, "", set())
        self.failures: Counter[UUID] = Counter()
        self.deaths_told: Counter[UUID] = Counter()
        self.told: dict[UUID, Counter[str]] = defaultdict(Counter)
        self.told_at: dict[UUID, list[float]] = defaultdict(list)

    def tell(self, row: Stored) -> None:
        """Is there something to it?"""
        said = json.loads(row.payload or b"")
        data: dict[str, Any] = said["data"]
        endpoint_id = UUID(data["endpoint_id"].removeprefix("ep_"))
        self.told[endpoint_id][row.type] += 1
        check(endpoint_id not in row.owed, "told to the endpoint that it is about:", row)
        match row.type:
            case "hookpost.delivery.dead":
                self.deaths_told[endpoint_id] += data["count"]
                died = self.died[endpoint_id]
                check(self.deaths_told[endpoint_id] <= len(died), "more deaths told than there were:", row)
                named = {UUID(each.removeprefix("evt_")) for each in data["event_ids"]}
                check(named <= set(died), "told of a death that was none:", row)
                self.told_at[endpoint_id].append(datetime.fromisoformat(said["timestamp"]).timestamp())
            case "hookpost.endpoint.failing":
                count = data["consecutive_failures"]
                check(
                    self.began.announce_after <= count <= self.failures[endpoint_id], "it did not fail so often:", row
                )
            case "hookpost.endpoint.recovered":
                pass
            case _:
                check(False, "nobody knows of it:", row)

    def bury(self, part: Settled) -> None:
        """All parts of a settle are committed at one moment."""
        if (part.at, part.node) != self.settle[:2]:
            self.settle = (part.at, part.node, set())
        for died in part.dead:
            if (died.event_id, died.endpoint_id) not in self.settle[2]:
                self.settle[2].add((died.event_id, died.endpoint_id))
                self.died[died.endpoint_id].append(died.event_id)

    def close(self, deleted: set[UUID]) -> None:
        """Is all of it told, and nothing twice?"""
        for endpoint_id, told in self.told.items():
            open_ = told[FAILING] - told[RECOVERED]
            check(open_ in (0, 1), "told that it fails, and that it has recovered:", told, endpoint_id)
            times = sorted(self.told_at[endpoint_id])
            gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
            check(
                min(gaps, default=1e9) >= self.began.deaths_every_s - ROUNDED_S,
                "told too soon again:",
                endpoint_id,
                gaps,
            )
        for endpoint_id in self.died.keys() - deleted:
            died = len(self.died[endpoint_id])
            check(self.deaths_told[endpoint_id] == died, "deaths told:", self.deaths_told[endpoint_id], "of", died)


def judge(trace: Trace) -> None:
    books = _Books(next(trace.of(Began)))
    deleted = {entry.endpoint_id for entry in trace.of(Configured) if entry.deleted}
    for entry in trace.of(Stored, Answered, Settled, Ended):
        match entry:
            case Stored() if entry.kind == 0 and entry.type.startswith(PREFIX):
                books.tell(entry)
            case Answered() if entry.error is not None:
                books.failures[entry.endpoint_id] += 1
            case Settled():
                books.bury(entry)
            case Ended():
                books.close(deleted)
            case _:
                pass
