"""How many cores may be used, and how many processes that makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hookpost.app import cores
from hookpost.app.config import load


@pytest.mark.parametrize(
    ("number", "workers", "api_processes"),
    [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 2, 1), (6, 3, 1), (8, 4, 2), (64, 4, 2)],
)
def test_each_two_cores_carry_a_worker_and_each_four_an_api_process(
    number: int, workers: int, api_processes: int
) -> None:
    assert (cores.workers(number, shards=8), cores.api_processes(number)) == (workers, api_processes)


def test_no_worker_is_without_a_shard() -> None:
    assert [cores.workers(64, shards=shards) for shards in (1, 2, 3, 4, 1024)] == [1, 2, 3, 4, 4]


def test_settings_go_by_the_cores_unless_they_say_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable", lambda: 8)
    settings = load()
    assert (settings.workers, settings.api_processes) == (4, 2)
    settings = load(shards=3)
    assert settings.workers == 3
    settings = load(workers=7, api_processes=1)
    assert (settings.workers, settings.api_processes) == (7, 1)


class Machine:
    """Control groups as files."""

    def __init__(self, folder: Path) -> None:
        self.groups = folder / "fs"
        self.own = folder / "cgroup"
        self.own.write_text("0::/\n")

    def limit(self, group: str, quota: str) -> None:
        folder = self.groups / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(f"{quota} 100000\n")

    def usable(self) -> int:
        return cores.usable(self.own, self.groups)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return Machine(tmp_path)


def test_without_a_quota_all_cores_that_we_may_run_on_count(machine: Machine) -> None:
    assert machine.usable() == 16
    machine.limit("", "max")
    assert machine.usable() == 16
    machine.own.unlink()
    assert machine.usable() == 16


@pytest.mark.parametrize(("quota", "usable"), [("400000", 4), ("350000", 3), ("50000", 1), ("9900000", 16)])
def test_a_quota_counts_in_whole_cores(machine: Machine, quota: str, usable: int) -> None:
    machine.limit("", quota)
    assert machine.usable() == usable


def test_the_narrowest_quota_around_us_counts_and_none_beside_us(machine: Machine) -> None:
    machine.own.write_text("4:memory:/elsewhere\n0::/system.slice/hookpost.service\n")
    machine.limit("system.slice/hookpost.service", "600000")
    machine.limit("system.slice", "300000")
    machine.limit("elsewhere", "100000")
    assert machine.usable() == 3


@pytest.mark.parametrize("content", ["", "many 100000", "100000 0", "100000"])
def test_a_quota_that_cannot_be_read_is_none(machine: Machine, content: str) -> None:
    machine.limit("", "max")
    (machine.groups / "cpu.max").write_text(content)
    assert machine.usable() == 16


def test_a_group_that_leads_out_of_the_folder_is_not_followed(machine: Machine) -> None:
    machine.own.write_text("0::/../beside/us\n")
    machine.limit("", "max")
    machine.limit("../beside", "100000")
    assert machine.usable() == 16
