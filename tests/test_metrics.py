"""One page for all processes: what is counted stays counted, whoever dies, and labels are bounded and hold no secrets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from hookpost import telemetry
from hookpost.engine.tally import tally
from hookpost.engine.work import ATTEMPT_COLUMNS, DeadLetter, Progress, ShardSettle
from hookpost.exposition import Metrics, alone, render
from hookpost.metrics import DEAD, Board, Platform, Reporter, Snapshot, added, snapshot
from hookpost.model import DeadReason, ErrorCode, WaitReason
from hookpost.storage.contract import PlatformFigures, ShardFigures, StoreUnavailable, TenantFigures
from tests.test_telemetry import _logging_as_before  # noqa: F401 - counters as before, for every test here

PLATFORM = PlatformFigures(
    shards=(
        ShardFigures(0, "default", 3, 1.5, 0.5, owned=True, lag=2),
        ShardFigures(7, "acme", 0, 0.0, 0.0, owned=False),
    ),
    backlog={"retry": 5},
    backlog_exact=True,
    tenants=(TenantFigures(UUID(int=1), 9, 10, 6, 1),),
    rollups_behind_s=4.0,
    journal_up=True,
)


@pytest.fixture(autouse=True)
def _nothing_counted() -> Iterator[None]:
    telemetry.counters.clear()
    telemetry.labelled.clear()
    for histogram in telemetry.histograms.values():
        histogram.counts[:] = [0] * len(histogram.counts)
        histogram.sum = 0.0
    yield
    telemetry.labelled.clear()


def samples(page: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """What the page says, by name and the values of the labels in the order of their names, as a scraper reads it."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def of(
    processes: dict[str, Snapshot], platform: PlatformFigures | None = PLATFORM
) -> dict[tuple[str, tuple[str, ...]], float]:
    return samples(render(processes, platform, accept="", now=100.0)[0])


def test_processes_are_added_up_and_told_apart_where_they_stand_for_themselves() -> None:
    telemetry.count("events_accepted", 2)
    telemetry.count_by("attempts", {("delivered", ""): 3, ("retry", "http_5xx"): 1})
    telemetry.observe("delivery_seconds", [0.02, 0.3, 1e9])
    one = snapshot({"in_flight_requests": 4}, now=99.0)
    found = of({"worker-1": one, "worker-2": snapshot({"in_flight_requests": 1}, now=60.0)})
    assert found["hookpost_events_accepted_total", ()] == 4
    assert found["hookpost_attempts_total", ("", "delivered")] == 6
    assert found["hookpost_attempts_total", ("http_5xx", "retry")] == 2
    assert found["hookpost_in_flight_requests", ("worker-1",)] == 4
    assert found["hookpost_process_silent_seconds", ("worker-2",)] == 40
    buckets = {
        labels[0]: value for (name, labels), value in found.items() if name == "hookpost_delivery_seconds_bucket"
    }
    assert (buckets["0.01"], buckets["0.025"], buckets["0.5"], buckets["86400"], buckets["+Inf"]) == (0, 2, 4, 4, 6)
    assert found["hookpost_delivery_seconds_count", ()] == 6


def test_the_platform_is_told_by_shard_reason_and_tenant() -> None:
    found = of({})
    assert found["hookpost_journal_depth", ("default", "0")] == 3
    assert found["hookpost_journal_age_seconds", ("default", "0")] == 1.5
    assert found["hookpost_journal_unread_seconds", ("default", "0")] == 0.5
    assert found["hookpost_shards_unowned", ()] == 1
    assert found["hookpost_backlog_deliveries", ("retry",)] == 5
    tenant = f"ten_{UUID(int=1).hex}"
    outcomes = {
        outcome: found["hookpost_tenant_attempts_total", (outcome, tenant)]
        for outcome in ("delivered", "retry", "dead")
    }
    assert outcomes == {"delivered": 6, "retry": 3, "dead": 1}
    assert (found["hookpost_store_up", ()], found["hookpost_rollups_behind_seconds", ()]) == (1, 4)


def test_what_alerts_divide_by_is_there_before_it_is_counted() -> None:
    """A process that has delivered nothing since its start must not look like one that has sent nothing."""
    telemetry.count_by("attempts", {("retry", "http_5xx"): 3})
    found = of({"worker-1": snapshot({}, now=1.0)})
    assert found["hookpost_attempts_total", ("", "delivered")] == 0
    assert {labels for name, labels in found if name == "hookpost_dead_letters_total"} == {(r,) for r in DeadReason}
    assert found["hookpost_lease_changes_total", ("lost",)] == 0


def test_without_the_store_the_processes_are_told_all_the_same() -> None:
    telemetry.count("settles", 5)
    found = of({"worker-1": snapshot({}, now=1.0)}, None)
    assert (found["hookpost_store_up", ()], found["hookpost_settles_total", ()]) == (0, 5)
    assert not any(name == "hookpost_journal_depth" for name, _ in found)


def test_what_a_dead_process_counted_stays_counted_when_another_takes_its_name(tmp_path: Path) -> None:
    board = Board(tmp_path)
    telemetry.count("settles", 5)
    telemetry.observe("settle_seconds", [0.2])
    for _ in range(3):
        board.write("worker-1", snapshot({"in_flight_requests": 9}, now=1.0))
        board.bury("worker-1")
        board.bury("worker-1")
    assert set(board.read()) == {DEAD}
    board.write("worker-1", snapshot({"in_flight_requests": 2}, now=1.0))
    found = of(board.read())
    assert found["hookpost_settles_total", ()] == 20
    assert found["hookpost_settle_seconds_count", ()] == 4
    assert [labels for (name, labels) in found if name == "hookpost_in_flight_requests"] == [("worker-1",)]


def test_a_file_that_is_broken_or_of_another_release_costs_itself_alone(tmp_path: Path) -> None:
    board = Board(tmp_path)
    (tmp_path / "api-1.json").write_text("{")
    old = Snapshot(histograms={"settle_seconds": ([1, 2], 0.1)})
    telemetry.count("settles")
    assert set(board.read()) == set()
    assert added([snapshot({}, now=0.0), old]).histograms["settle_seconds"][0] == [0] * 15


async def test_what_was_counted_last_is_written_when_a_process_ends(tmp_path: Path) -> None:
    board = Board(tmp_path)
    reporter = Reporter(board, "worker-1", lambda: {"buffered_deliveries": 3})
    reporter.report()
    telemetry.count("settles", 7)
    reporter.report()
    written = board.read()["worker-1"]
    assert (written.gauges["buffered_deliveries"], written.counters) == (3, [("settles", (), 7)])
    assert written.gauges["process_cpu_seconds"] > 0
    assert [place.name for place in tmp_path.iterdir()] == ["worker-1.json"]


def test_an_undeclared_figure_is_refused() -> None:
    for wrong in (
        lambda: snapshot({"nonsense": 1}, now=0.0),
        lambda: telemetry.count_by("nonsense", {}),
        lambda: telemetry.observe("nonsense", []),
    ):
        with pytest.raises(telemetry.UndeclaredError, match="nonsense"):
            wrong()


class Store:
    """Answers, or does not; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.up = True

    async def platform_figures(self, *, backlog_max: int, tenants_max: int) -> PlatformFigures:
        self.asked += 1
        if not self.up:
            raise StoreUnavailable("away")
        return PLATFORM


async def test_however_often_the_page_is_asked_for_the_store_is_asked_now_and_then() -> None:
    store, now = Store(), 0.0
    platform = Platform(store, tenants_max=5, monotonic=lambda: now)
    page = Metrics(platform, dict)
    for _ in range(10):
        await page.page()
    assert store.asked == 1
    store.up, now = False, 5.0
    assert (await platform.figures(), store.asked) == (None, 2)
    store.up, now = True, 10.0
    assert await platform.figures() is PLATFORM


async def test_a_client_that_asks_for_openmetrics_gets_it() -> None:
    page, media_type = await alone(Store()).page("application/openmetrics-text;version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")


# ---- what a settle means ---------------------------------------------------------------------------------------------


def attempt(outcome: str, code: str | None) -> tuple[object, ...]:
    values = {"outcome": outcome, "error_code": code}
    return tuple(values.get(column) for column in ATTEMPT_COLUMNS)


def settle(attempts: list[tuple[object, ...]], dead: list[DeadReason], after_s: list[float]) -> ShardSettle:
    letters = [DeadLetter(UUID(int=1), 1, 0, UUID(int=2), UUID(int=3), 0, "a", reason, 0.0, 1) for reason in dead]
    progress = Progress(0, 0, 0, (), ())
    return ShardSettle(0, 1, 1, progress, attempts, {}, [], letters, [], [], delivered_after_s=after_s)


def test_a_settle_is_tallied_over_its_shards() -> None:
    found = tally([
        settle([attempt("delivered", None), attempt("retry", ErrorCode.HTTP_5XX)], [], [0.5]),
        settle([attempt("delivered", None), attempt("dead", ErrorCode.HTTP_4XX)], [DeadReason.HTTP_4XX], [1.5]),
    ])  # fmt: skip
    assert found.attempts == {("delivered", ""): 2, ("retry", "http_5xx"): 1, ("dead", "http_4xx"): 1}
    assert found.dead == {("http_4xx",): 1}
    assert found.delivered_after_s == [0.5, 1.5]


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_are_enumerations_shards_and_tenants_ids_and_nothing_else() -> None:
    """A page for the largest platform: what an outsider chooses (types, URLs, names, keys) makes no series."""
    telemetry.count_by("attempts", {(o, c): 1 for o in ("delivered", "retry", "dead") for c in ("", *ErrorCode)})
    telemetry.count_by("dead_letters", {(reason,): 1 for reason in DeadReason})
    platform = PlatformFigures(
        shards=tuple(ShardFigures(n, "default", 1, 1.0, 1.0, owned=True) for n in range(1024)),
        backlog=dict.fromkeys(WaitReason, 1),
        backlog_exact=False,
        tenants=tuple(TenantFigures(UUID(int=n), 1, 1, 1, 0) for n in range(20)),
        rollups_behind_s=0.0,
    )
    page, _ = render({"worker-1": snapshot({}, now=0.0)}, platform, accept="", now=0.0)
    labels = set(re.findall(r'(\w+)="', page.decode()))
    assert labels == {"outcome", "error_code", "reason", "change", "shard", "pool", "tenant", "process", "le"}
    assert len(samples(page)) < 3 * 1024 + 400


def test_a_worker_under_a_supervisor_does_not_load_what_writes_the_page() -> None:
    look = "import sys, hookpost.app.compose, hookpost.app.children; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0


# ---- what is deployed with it ----------------------------------------------------------------------------------------

DEPLOY = Path(__file__).parent.parent / "deploy"


def exposed() -> dict[str, set[str]]:
    """Every name that a page has, with its labels."""
    telemetry.count_by("attempts", {("delivered", ""): 1})
    telemetry.count_by("dead_letters", {("deadline",): 1})
    telemetry.count_by("lease_changes", {("lost",): 1})
    page, _ = render(
        {"worker-1": snapshot(dict.fromkeys(telemetry.GAUGES, 0.0), now=0.0)}, PLATFORM, accept="", now=0.0
    )
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize(
    "file",
    ["prometheus/alerts.yml", "grafana/hookpost.json", "helm/hookpost/values.yaml", "../docs/runbook.md"],
)
def test_alerts_dashboard_chart_and_runbook_ask_for_names_that_there_are(file: str) -> None:
    named = set(re.findall(r"hookpost_[a-z_]+", (DEPLOY / file).read_text(encoding="utf-8")))
    assert named
    assert named <= exposed().keys()


def formulas() -> list[str]:
    """Every expression that somebody is told to ask Prometheus for."""
    rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]
    panels = json.loads((DEPLOY / "grafana/hookpost.json").read_text(encoding="utf-8"))["panels"]
    documented = (DEPLOY.parent / "docs/metrics.md").read_text(encoding="utf-8")
    levels = documented.partition("## Service levels")[2].partition("## ")[0]
    return [
        *(rule["expr"] for group in rules for rule in group["rules"]),
        *(target["expr"] for panel in panels for target in panel.get("targets", [])),
        *re.findall(r"`([^`]*\(hookpost_[^`]*)`", levels),
    ]


def test_every_formula_names_metrics_and_labels_that_there_are() -> None:
    there = exposed()
    for formula in formulas():
        asked = re.findall(r"(hookpost_[a-z_]+)(?:\{([^}]*)\})?", formula)
        assert asked, formula
        for name, matchers in asked:
            assert name in there, formula
            assert set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", matchers)) <= there[name], formula
        grouped = ",".join(re.findall(r"\b(?:by|without|ignoring|on) ?\(([^)]*)\)", formula))
        # Prometheus adds the instance that was asked.
        known = {"instance"}.union(*(there[name] for name, _ in asked))
        assert set(re.findall(r"\w+", grouped)) <= known, formula


def test_every_service_level_has_a_formula() -> None:
    assert len(formulas()) > 40
    table = (DEPLOY.parent / "docs/metrics.md").read_text(encoding="utf-8")
    levels = re.findall(r"^\| ([^|]+) \| `", table.partition("## Service levels")[2].partition("## ")[0], re.MULTILINE)
    assert levels == [
        "attempt success rate", "p95 from acceptance to 2xx", "dead-letter rate", "error rate of a tenant",
        "journal depth, age", "backlog by reason", "lease changes", "settle time",
    ]  # fmt: skip


def test_every_exposed_name_is_documented() -> None:
    documented = (DEPLOY.parent / "docs/metrics.md").read_text(encoding="utf-8")
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in exposed()}
    assert [name for name in sorted(families) if f"`{name}`" not in documented] == []
