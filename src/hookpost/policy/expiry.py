"""When certificates of an endpoint's own end, so that it is told in time: two weeks ahead, when there is time to ask
somebody for a new one, and a day ahead, when there is none to lose.

Pure: ``now`` is an argument, in Unix seconds. What was told is remembered by certificate, so that each is told once at
each distance, and a new one begins anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

from hookpost.policy.tls import CertificateInfo, describe

__all__ = ["WARN_DAYS", "CertificateState", "Ending", "Review", "review", "standing"]

DAY_S = 86_400.0
# Ahead of the end, the earliest first.
WARN_DAYS = (14, 1)


class CertificateState(StrEnum):
    """Of all certificates of an endpoint together: of the one that ends first."""

    VALID = "valid"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Ending:
    """A certificate that ends within so many days, or has ended. ``what``: what it is for."""

    what: str
    certificate: CertificateInfo
    days: int

    def __str__(self) -> str:
        return f"the {self.what} {self.certificate.subject} (SHA-256 {self.certificate.sha256})"


@dataclass(frozen=True, slots=True)
class Review:
    """What to tell now, what was told then (opaque, to be given to the next review), and when to look again."""

    endings: tuple[Ending, ...]
    told: tuple[str, ...]
    look_at: float


def review(ca_pem: str | None, cert_pem: str | None, told: Collection[str], *, now: float) -> Review:
    """Look at an endpoint's certificates. Of several distances that were passed at once the nearest alone is told."""
    endings: list[Ending] = []
    after: list[str] = []
    look_at = float("inf")
    for what, certificate in _all(ca_pem, cert_pem):
        passed = [days for days in WARN_DAYS if certificate.expires_at - days * DAY_S <= now]
        marks = [f"{certificate.sha256}:{days}" for days in passed]
        if marks and marks[-1] not in told and marks[-1] not in after:
            endings.append(Ending(what, certificate, passed[-1]))
        after += marks
        to_come = [certificate.expires_at - days * DAY_S for days in WARN_DAYS if days not in passed]
        look_at = min([look_at, *to_come])
    return Review(tuple(endings), tuple(dict.fromkeys(after)), look_at)


def standing(ca_pem: str | None, cert_pem: str | None, *, now: float) -> tuple[CertificateState, float] | None:
    """How the certificates stand and when the first of them ends; None: there are none."""
    ends = [certificate.expires_at for _, certificate in _all(ca_pem, cert_pem)]
    if not ends:
        return None
    first = min(ends)
    if first <= now:
        return CertificateState.ENDED, first
    return (CertificateState.ENDING if first - WARN_DAYS[0] * DAY_S <= now else CertificateState.VALID), first


def _all(ca_pem: str | None, cert_pem: str | None) -> Iterator[tuple[str, CertificateInfo]]:
    """A chain's certificates are of no use when one of them has ended."""
    for what, pem in (("client certificate", cert_pem), ("trusted certificate", ca_pem)):
        for certificate in describe(pem) if pem else ():
            yield what, certificate
