"""One cluster of three brokers for all tests of a run, in however many processes they run.

Tests share it, each with a topic of its own; a test that kills brokers has it for itself.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from uuid_utils.compat import uuid7

from hookpost.policy.journal import KafkaAddress, parse_address
from tests.conftest import require
from tests.kafka.cluster import Cluster, missing
from tests.kafka.driver import Kafka

# A folder whose cluster goes on running after the run: for whoever works on these tests.
KEPT = os.environ.get("KAFKA_KEPT")


@contextmanager
def locked(place: Path, how: int) -> Iterator[None]:
    """The file's lock, shared or for one alone."""
    with place.open("a") as file:
        fcntl.flock(file, how)
        yield


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Cluster]:
    """The cluster: started by whichever process needs it first, ended by the last one that has used it."""
    lacks = missing()
    require(lacks is None, lacks or "")
    if KEPT is not None:
        cluster = Cluster(Path(KEPT))
        if down := set(cluster.ports) - set(cluster.pids):
            cluster.start(*down)
        yield cluster
        return
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "kafka"
    folder.mkdir(exist_ok=True)
    users = folder / "users"
    with locked(folder / "lock", fcntl.LOCK_EX):
        cluster = Cluster(folder)
        if not cluster.pids:
            cluster.start()
        with users.open("a") as file:
            file.write("+")
    yield cluster
    with locked(folder / "lock", fcntl.LOCK_EX):
        with users.open("a") as file:
            file.write("-")
        if users.read_text().count("+") == users.read_text().count("-"):
            cluster.kill()
            for broker in cluster.ports:
                shutil.rmtree(folder / f"broker-{broker}" / "data", ignore_errors=True)


@pytest.fixture
def cluster(brokers: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster, all of its brokers up; nobody else uses it if the test is marked ``kills_brokers``."""
    alone = request.node.get_closest_marker("kills_brokers") is not None
    with locked(brokers.folder / "turns", fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        yield brokers
        down = set(brokers.ports) - set(brokers.pids)
        if down:
            brokers.start(*down)


@pytest.fixture
def address(cluster: Cluster) -> KafkaAddress:
    """A topic of this test's own, which is not there yet."""
    return parse_address(f"kafka://{cluster.servers}/test.{uuid7().hex}")


@pytest.fixture
async def driver(address: KafkaAddress, database: str) -> AsyncIterator[Kafka]:
    """A journal in Kafka in front of a fresh database of four shards."""
    opened = Kafka(database, address)
    await opened.prepare()
    yield opened
    await opened.close()
