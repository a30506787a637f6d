"""Networks of their own for workers, and cuts in them: nothing gets through, and nobody is told.

Relies on root, iproute2 and network namespaces (``why_not``). Each worker apart has two wires to the machine that the
database, the API and the receiver are on, one to each of the two. A wire is cut by telling its ends a wrong hardware
address for each other: packets leave, and arrive nowhere, as behind a switch that died. Connections find out by their
own timeouts only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum

# The one address of the database and of the receiver, whatever wire leads there.
DATABASE_HOST, RECEIVER_HOST = "10.71.0.1", "10.70.0.1"
# A hardware address that nobody has.
NOBODY = "02:00:00:00:00:99"


class Wire(StrEnum):
    """Where a worker's two wires lead."""

    DATABASE = "db"
    RECEIVER = "rx"


class Way(StrEnum):
    """What a cut swallows. One way is the nastier one: a commit gets there, and its answer does not come back."""

    BOTH = "both"
    ANSWERS = "answers"


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "unshare", "nsenter") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} is missing (iproute2, util-linux)"
    script = "ip link set lo up && ip link add t0 type veth peer name t1 && ip neigh replace 10.0.0.2 lladdr " + NOBODY
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", f"{script} dev t0 nud permanent"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if tried.returncode == 0 else f"no network namespace with a wire: {tried.stderr.strip()}"


def prepare_machine() -> None:
    """The addresses of database and receiver, in the namespace that this process is in."""
    _ip("link set lo up")
    for host in (DATABASE_HOST, RECEIVER_HOST):
        _ip(f"addr add {host}/32 dev lo")


@dataclass(slots=True)
class Island:
    """One worker's network. It lives as long as the process that holds it."""

    number: int
    holder: subprocess.Popen[bytes]

    @classmethod
    def made(cls, number: int) -> Island:
        """With both wires up."""
        # It ends with us, whatever kills us: its standard input is a pipe of ours.
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        island = cls(number, holder)
        island._run("link set lo up")
        for wire, host in ((Wire.DATABASE, DATABASE_HOST), (Wire.RECEIVER, RECEIVER_HOST)):
            ours, theirs = island._name(wire), str(wire)
            _ip(f"link add {ours} type veth peer name {theirs} netns {holder.pid}")
            _ip(f"addr add {island._address(wire, 1)}/30 dev {ours}")
            _ip(f"link set {ours} up")
            island._run(f"addr add {island._address(wire, 2)}/30 dev {theirs}")
            island._run(f"link set {theirs} up")
            island._run(f"route add {host} via {island._address(wire, 1)}")
        return island

    @property
    def command(self) -> list[str]:
        """What to put in front of a command that is to run there."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--"]

    @property
    def addresses(self) -> set[str]:
        """What its connections come from."""
        return {self._address(wire, 2) for wire in Wire}

    def cut(self, wire: Wire, way: Way) -> None:
        """Until it is mended."""
        _ip(f"neigh replace {self._address(wire, 2)} lladdr {NOBODY} dev {self._name(wire)} nud permanent")
        if way is Way.BOTH:
            self._run(f"neigh replace {self._address(wire, 1)} lladdr {NOBODY} dev {wire} nud permanent")

    def mend(self, wire: Wire) -> None:
        """The neighbours ask for each other's address again."""
        for command, address, device in (
            ([], self._address(wire, 2), self._name(wire)),
            (self.command, self._address(wire, 1), str(wire)),
        ):
            # Where answers alone were cut there is nothing to take back at their end.
            subprocess.run([*command, "ip", "neigh", "del", address, "dev", device], capture_output=True, check=False)

    def close(self) -> None:
        """The namespace goes with its last process, and the wires with it."""
        self.holder.kill()
        self.holder.wait()

    def _name(self, wire: Wire) -> str:
        return f"{wire}{self.number}"

    def _address(self, wire: Wire, end: int) -> str:
        return f"10.{77 if wire is Wire.DATABASE else 78}.{self.number}.{end}"

    def _run(self, arguments: str) -> None:
        subprocess.run([*self.command, "ip", *arguments.split()], check=True)


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)
