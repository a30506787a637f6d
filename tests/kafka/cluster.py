"""A cluster of three real brokers on loopback: Apache Kafka in KRaft mode, broker and controller in one process.

Brings the classes by Maven (tests/kafka/pom.xml; nothing is downloaded twice), writes each broker's folder and starts
it with this machine's Java. A broker can be killed and started again on what it has written.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from uuid import uuid4

from tests.e2e.processes import alive

BROKERS = 3
# From nothing to three brokers that serve; a slow machine takes fifteen seconds.
START_S_MAX = 90.0
# Maven's first run downloads 60 MB.
MAVEN_S_MAX = 240.0
POM = Path(__file__).with_name("pom.xml")
# Small heaps and no optimizing compiler: brokers of a test live for a minute, and start in half the time.
JAVA_OPTIONS = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


class KafkaAbsent(Exception):
    """This machine cannot run brokers; the text says what is missing."""


def missing() -> str | None:
    """What this machine lacks, in words, or None."""
    lacks = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    return f"brokers need {' and '.join(lacks)} (Java 17 and Maven)" if lacks else None


def classpath(folder: Path) -> str:
    """The classes of a broker, brought by Maven; remembered in ``folder`` for as long as the pom is the same."""
    remembered = folder / f"classpath-{int(POM.stat().st_mtime)}-{POM.stat().st_size}"
    if remembered.exists():
        text = remembered.read_text(encoding="utf-8")
        if all(Path(part).exists() for part in text.split(":")):
            return text
    command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:build-classpath", f"-Dmdep.outputFile={remembered}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MAVEN_S_MAX, check=False)
    if done.returncode:
        raise KafkaAbsent(f"Maven brings no Kafka: {done.stdout[-2000:]}{done.stderr[-500:]}")
    return remembered.read_text(encoding="utf-8")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Cluster:
    """Brokers 1 to ``brokers`` in one folder. Several processes may use it: what they share stands in its file."""

    def __init__(self, folder: Path, *, brokers: int = BROKERS) -> None:
        """Make the folder's cluster, or know it again."""
        self.folder = folder
        self._file = folder / "cluster.json"
        self._classpath = classpath(folder)
        if self._file.exists():
            known = json.loads(self._file.read_text())
            self.ports = {int(broker): port for broker, port in known["ports"].items()}
            return
        ports = free_ports(2 * brokers)
        self.ports = dict(enumerate(ports[:brokers], 1))
        cluster_id = urlsafe_b64encode(uuid4().bytes).decode().rstrip("=")
        for broker in self.ports:
            self._write(broker, cluster_id, dict(enumerate(ports[brokers:], 1)))
        self._save({})

    @property
    def servers(self) -> str:
        """host:port of each broker, as clients want it."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports.values())

    @property
    def pids(self) -> dict[int, int]:
        """The processes that run, by broker."""
        known = json.loads(self._file.read_text())["pids"]
        return {int(broker): pid for broker, pid in known.items() if alive(pid)}

    def start(self, *brokers: int) -> None:
        """Start these brokers, or all; returns when their ports answer."""
        chosen = brokers or tuple(self.ports)
        pids = self.pids
        for broker in chosen:
            pids[broker] = self._launch(broker)
        self._save(pids)
        until = time.monotonic() + START_S_MAX
        for broker in chosen:
            while not self._answers(broker):
                if not alive(pids[broker]) or time.monotonic() > until:
                    raise RuntimeError(f"broker {broker} does not start: {self._log(broker).read_text()[-3000:]}")
                time.sleep(0.1)

    def kill(self, *brokers: int) -> None:
        """kill -9: what it has not told the disk lies in the page cache, as after any crash of a process."""
        pids = self.pids
        for broker in brokers or tuple(pids):
            pid = pids.pop(broker)
            os.kill(pid, signal.SIGKILL)
            while alive(pid):
                time.sleep(0.01)
        self._save(pids)

    def _save(self, pids: dict[int, int]) -> None:
        self._file.write_text(json.dumps({"ports": self.ports, "pids": pids}))

    def _answers(self, broker: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.ports[broker]), 1.0).close()
        except OSError:
            return False
        return True

    def _launch(self, broker: int) -> int:
        home = self.folder / f"broker-{broker}"
        command = ["java", *JAVA_OPTIONS, "-cp", self._classpath, "kafka.Kafka", str(home / "server.properties")]
        with self._log(broker).open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=home, start_new_session=True
            ).pid

    def _log(self, broker: int) -> Path:
        return self.folder / f"broker-{broker}" / "log.txt"

    def _write(self, broker: int, cluster_id: str, controllers: dict[int, int]) -> None:
        home = self.folder / f"broker-{broker}"
        (home / "data").mkdir(parents=True)
        directory_id = urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=").replace("-", "A")
        (home / "data" / "meta.properties").write_text(
            f"version=1\ncluster.id={cluster_id}\nnode.id={broker}\ndirectory.id={directory_id}\n"
        )
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in controllers.items())
        copies = min(len(self.ports), 3)
        (home / "server.properties").write_text(
            "\n".join([
                "process.roles=broker,controller",
                f"node.id={broker}",
                f"controller.quorum.voters={voters}",
                f"listeners=PLAINTEXT://127.0.0.1:{self.ports[broker]},CONTROLLER://127.0.0.1:{controllers[broker]}",
                f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.ports[broker]}",
                "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
                "controller.listener.names=CONTROLLER",
                f"log.dirs={home / 'data'}",
                "auto.create.topics.enable=false",
                f"default.replication.factor={copies}",
                f"offsets.topic.replication.factor={copies}",
                f"transaction.state.log.replication.factor={copies}",
                "transaction.state.log.min.isr=1",
                "num.network.threads=1",
                "num.io.threads=2",
                "log.cleaner.enable=false",
                # A dead broker is noticed within two seconds instead of nine, so that tests need not wait.
                "broker.heartbeat.interval.ms=500",
                "broker.session.timeout.ms=2000",
                "replica.lag.time.max.ms=3000",
                "controller.quorum.election.timeout.ms=500",
                "controller.quorum.fetch.timeout.ms=1000",
                "controller.quorum.election.backoff.max.ms=300",
                "controlled.shutdown.enable=false",
            ])
            + "\n"
        )  # fmt: skip
