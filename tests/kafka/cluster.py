"""A cluster of three real brokers on loopback: Apache Kafka in KRaft mode, broker and controller in one process.

Brings the classes by Maven (tests/kafka/pom.xml; nothing is downloaded twice), writes each broker's folder and starts
it with this machine's Java. A broker can be killed and started again on what it has written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.e2e.ports import free_ports
from tests.e2e.processes import alive

BROKERS = 3
# From nothing to three brokers that serve; a slow machine takes fifteen seconds, and one that has other things to do two
# minutes. This is there against a hang alone.
START_S_MAX = 600.0
# A broker that ends while it starts is started again: two did in one run of hundreds, without a word why (its log has no
# writer), and with them all tests that need brokers. What is tested is Hookpost.
STARTS_MAX = 3
# Maven's first run downloads 60 MB.
MAVEN_S_MAX = 600.0
# Before each try.
MAVEN_PAUSES_S = (0.0, 5.0, 20.0, 60.0)
# An answer of a cluster that is up.
ASK_S = 60.0
# One of a cluster that may not be: it is asked again.
ASK_AGAIN_S = 5.0
POM = Path(__file__).with_name("pom.xml")
# Small heaps and no optimizing compiler: brokers of a test live for a minute, and start in half the time. Classes that
# come from Maven need no proof that they are well-formed: 3.4 s of CPU a start instead of 4.8.
JAVA_OPTIONS = (
    "-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
    "-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote",
)  # fmt: skip


class KafkaAbsent(Exception):
    """This machine cannot run brokers; the text says what is missing."""


def missing() -> str | None:
    """What this machine lacks, in words, or None."""
    lacks = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    return f"brokers need {' and '.join(lacks)} (Java 17 and Maven)" if lacks else None


def classpath() -> str:
    """The classes of a broker, brought by Maven, which takes as much CPU as two brokers that start: remembered for as long
    as the pom is the same and they are there."""
    folder = Path(tempfile.gettempdir()) / f"hookpost-maven-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise KafkaAbsent(f"{folder} is somebody else's")
    remembered = folder / f"classpath-{hashlib.sha256(POM.read_bytes()).hexdigest()[:16]}"
    # Two at once would write to the same place what they download; and a repository may be away for a moment.
    with (folder / "lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for pause_s in MAVEN_PAUSES_S:
            if remembered.exists():
                text = remembered.read_text(encoding="utf-8")
                if all(Path(part).exists() for part in text.split(":")):
                    return text
            time.sleep(pause_s)
            done = subprocess.run(
                ["mvn", "-q", "-B", "-f", str(POM), "dependency:build-classpath", f"-Dmdep.outputFile={remembered}"],
                capture_output=True, text=True, timeout=MAVEN_S_MAX, check=False,
            )  # fmt: skip
            if not done.returncode:
                return remembered.read_text(encoding="utf-8")
    raise KafkaAbsent(f"Maven brings no Kafka: {done.stdout[-2000:]}{done.stderr[-500:]}")


@dataclass(frozen=True, slots=True)
class Guard:
    """A door of each broker that wants TLS and a password, beside the plain one, at a port of its own."""

    certificate: Path
    """Key and chain, PEM."""
    user: str
    password: str
    """For PLAIN; one for SCRAM is set by the plain door."""
    port: int


class Cluster:
    """Brokers 1 to ``brokers`` in one folder. Several processes may use it: what they share stands in its file."""

    def __init__(self, folder: Path, *, brokers: int = BROKERS, guard: Guard | None = None) -> None:
        """Make the folder's cluster, or know it again. ``guard``: for a cluster of one broker."""
        self.folder = folder
        self._guard = guard
        self._file = folder / "cluster.json"
        self._classpath = classpath()
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
        """Start these brokers, or all; returns when the cluster counts them in."""
        chosen = brokers or tuple(self.ports)
        pids = self.pids
        for broker in chosen:
            pids[broker] = self._launch(broker)
        self._save(pids)
        until = time.monotonic() + START_S_MAX
        again = dict.fromkeys(chosen, STARTS_MAX - 1)
        for broker in chosen:
            while not self._answers(broker):
                if not alive(pids[broker]) and again[broker]:
                    again[broker] -= 1
                    pids[broker] = self._launch(broker)
                    self._save(pids)
                elif not alive(pids[broker]) or time.monotonic() > until:
                    found = "is still starting" if alive(pids[broker]) else "ended"
                    raise RuntimeError(f"broker {broker} {found}: {self._log(broker).read_text()[-3000:]}")
                time.sleep(0.1)
        self._asked(lambda found: set(chosen) <= found.brokers.keys())

    def kill(self, *brokers: int) -> None:
        """kill -9: what it has not told the disk lies in the page cache, as after any crash of a process."""
        pids = self.pids
        for broker in brokers or tuple(pids):
            ending = os.pidfd_open(pids.pop(broker))
            signal.pidfd_send_signal(ending, signal.SIGKILL)
            select.select([ending], [], [])
            os.close(ending)
        self._save(pids)

    def leader(self, topic: str) -> int:
        """The broker that leads most partitions of a topic."""
        found = self._asked(lambda found: bool(found.topics[topic].partitions), topic)
        led = Counter(each.leader for each in found.topics[topic].partitions.values() if each.leader in self.ports)
        return max(self.ports, key=lambda broker: led[broker])

    def _asked(self, enough: Callable[[Any], bool], topic: str | None = None) -> Any:
        """What brokers say of the cluster, once that is enough."""
        admin, until = AdminClient({"bootstrap.servers": self.servers, "log_level": 0}), time.monotonic() + START_S_MAX
        while True:
            with contextlib.suppress(KafkaException):
                found = admin.list_topics(topic, timeout=ASK_AGAIN_S)
                if enough(found):
                    return found
            if time.monotonic() > until:
                raise RuntimeError(f"the brokers do not say within {START_S_MAX:g} s what was asked for")
            time.sleep(0.1)

    def forget(self) -> None:
        """Remove what brokers that do not run any more have written."""
        self._file.unlink()
        for broker in self.ports:
            shutil.rmtree(self.folder / f"broker-{broker}", ignore_errors=True)

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
        doors = f"PLAINTEXT://127.0.0.1:{self.ports[broker]}"
        if self._guard is not None:
            doors += f",SASL_SSL://localhost:{self._guard.port}"
        (home / "server.properties").write_text(
            "\n".join([
                "process.roles=broker,controller",
                f"node.id={broker}",
                f"controller.quorum.voters={voters}",
                f"listeners={doors},CONTROLLER://127.0.0.1:{controllers[broker]}",
                f"advertised.listeners={doors}",
                "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
                "inter.broker.listener.name=PLAINTEXT",
                "controller.listener.names=CONTROLLER",
                f"log.dirs={home / 'data'}",
                f"auto.create.topics.enable={'false' if self._guard is None else 'true'}",
                f"default.replication.factor={copies}",
                f"offsets.topic.replication.factor={copies}",
                f"transaction.state.log.replication.factor={copies}",
                "transaction.state.log.min.isr=1",
                "num.network.threads=1",
                "num.io.threads=2",
                "log.cleaner.enable=false",
                # A dead broker is noticed within six seconds instead of nine, so that tests need not wait. Not sooner: on
                # a machine that has other things to do a living one would be taken for dead.
                "broker.heartbeat.interval.ms=1000",
                "broker.session.timeout.ms=6000",
                "replica.lag.time.max.ms=10000",
                "controlled.shutdown.enable=false",
                *([] if self._guard is None else _guarded(self._guard)),
            ])
            + "\n"
        )  # fmt: skip


def _guarded(guard: Guard) -> list[str]:
    module = "org.apache.kafka.common.security"
    plain = f'username="broker" password="broker" user_{guard.user}="{guard.password}"'
    return [
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={guard.certificate}",
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512",
        # Whoever comes by the plain door may do all, the user only what it is allowed.
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users=User:ANONYMOUS",
        f"listener.name.sasl_ssl.plain.sasl.jaas.config={module}.plain.PlainLoginModule required {plain};",
        f"listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;",
    ]
