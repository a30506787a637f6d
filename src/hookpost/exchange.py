"""One exchange with a receiver: a reusable easy handle, what has come of the answer, and what it amounts to.

Relies on libcurl calling back line by line and chunk by chunk. Promises: what is kept is bounded, the address of every
socket is judged right before it is opened, and whatever libcurl ends a transfer with is one of our error codes.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from http import HTTPStatus
from typing import Any

import pycurl

from hookpost.model import ErrorCode, Outcome, Request, Timeouts, TlsIdentity
from hookpost.policy.classify import http_error_code
from hookpost.policy.egress import ANYWHERE, EgressPolicy, Target, verdict
from hookpost.policy.signing import acknowledged

Name = tuple[str, int]
"""A host, by name or address, and a port: what libcurl keeps addresses by."""

DETAIL_CHARS_MAX = 300
_SUPPRESSED = ["Accept:", "Expect:", "Content-Type:"]  # libcurl sends its own unless the name stands here bare
_SUPPRESSED_BESIDE_TYPE = _SUPPRESSED[:2]  # what the first line names need not be suppressed
_TYPE = "content-type:"
_SHORT_BODY_BYTES = 128
_PROTOCOLS = {b"HTTP/1.0": "1.0", b"HTTP/1.1": "1.1", b"HTTP/2": "2"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept of an answer, in bytes, and how many header lines it may have."""

    body_bytes_max: int
    header_bytes_max: int
    header_lines_max: int
    head_bytes_success: int
    head_bytes_failure: int


class Exchange:
    """A reusable easy handle with what it has received for the request it is working on."""

    __slots__ = (
        "_body_bytes",
        "_chunks",
        "_complete",
        "_egress",
        "_fault",
        "_first_line",
        "_head",
        "_limits",
        "_lines",
        "_lookup_s",
        "_no_socket",
        "_ours",
        "_refused",
        "_registered",
        "_scheme",
        "_started_at",
        "_status",
        "_timeouts",
        "_tried",
        "_tunnel_end",
        "_url",
        "began",
        "done",
        "easy",
        "first_byte_at",
        "request",
        "target",
    )

    request: Request
    target: Target
    done: Callable[[Outcome], None]

    def __init__(self, easy: Any, limits: Limits, egress: EgressPolicy, registered: dict[int, int]) -> None:
        self.easy = easy
        self._limits = limits
        self._egress = egress
        self._registered = registered
        self._url = self._scheme = ""
        self._timeouts: Timeouts | None = None
        self._lines: list[bytes] = []
        self._chunks: list[bytes] = []
        easy.setopt(pycurl.HEADERFUNCTION, self._on_header)
        easy.setopt(pycurl.WRITEFUNCTION, self._on_body)
        easy.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)

    def begin(
        self,
        request: Request,
        target: Target,
        done: Callable[[Outcome], None],
        started_at: float,
        began: float,
    ) -> None:
        """Take the next request: ``started_at`` in Unix seconds, ``began`` on the loop's clock.

        All header lines are given to libcurl as one: it sends them as they are, and copying and searching a list of
        them costs 3 µs.
        """
        self.request, self.target, self.done = request, target, done
        self._started_at, self.began = started_at, began
        self._lines.clear()
        self._chunks.clear()
        self._first_line = self._body_bytes = self._status = 0
        self._head = b""
        self._complete = False
        self._refused = self._tried = self._fault = self._no_socket = ""
        self._tunnel_end = target.host
        self._ours = False
        self._lookup_s = 0.0
        setopt = self.easy.setopt
        own = _SUPPRESSED_BESIDE_TYPE if request.headers.startswith(_TYPE) else _SUPPRESSED
        setopt(pycurl.HTTPHEADER, [request.headers, *own])
        setopt(pycurl.POSTFIELDS, request.body)
        if target.url != self._url:
            setopt(pycurl.URL, target.url)
            self._url = target.url
        if target.scheme != self._scheme:
            setopt(pycurl.PIPEWAIT, target.scheme == "https")
            self._scheme = target.scheme
        if request.tls is not None:
            self._identify(request.tls)
        timeouts = request.timeouts
        self.first_byte_at = began + timeouts.first_byte_s
        if timeouts is not self._timeouts:
            self._set_timeouts(timeouts.connect_s, timeouts.total_s)
            self._timeouts = timeouts

    def _identify(self, tls: TlsIdentity) -> None:
        """Trust whom the endpoint trusts, and be who it expects. libcurl reuses connections only where all of it is the
        same; the handle is thrown away (see ``_conclude``)."""
        if tls.ca:
            self.easy.setopt(pycurl.CAINFO_BLOB, tls.ca)
        if tls.cert:
            self.easy.setopt(pycurl.SSLCERT_BLOB, tls.cert)
            self.easy.setopt(pycurl.SSLKEY_BLOB, tls.key)

    @property
    def lookup_s_max(self) -> float:
        """How long its name may be looked up."""
        return min(self.request.timeouts.connect_s, self.request.timeouts.first_byte_s)

    def found(self, addresses: tuple[str, ...], at: float, forgotten: Name | None) -> None:
        """The name is looked up: give libcurl the addresses, and what is left of the time."""
        self._lookup_s = at - self.began
        told = [f"+{self.target.host}:{self.target.port}:{','.join(map(bracketed, addresses))}"]
        if forgotten is not None:
            told.append(_no_more(forgotten))
        self.easy.setopt(pycurl.RESOLVE, told)
        timeouts = self.request.timeouts
        self._set_timeouts(timeouts.connect_s - self._lookup_s, timeouts.total_s - self._lookup_s)
        self._timeouts = None  # these are this request's alone

    def forget(self, name: Name) -> None:
        """libcurl need not know this name any more."""
        self.easy.setopt(pycurl.RESOLVE, [_no_more(name)])

    def tunnel_to(self, address: str, at: float) -> None:
        """The proxy is to open a tunnel to this address of the target's; what is left of the time."""
        self._tunnel_end = address
        port = self.target.port
        self.easy.setopt(pycurl.CONNECT_TO, [f"{self.target.host}:{port}:{bracketed(address)}:{port}"])
        self._lookup_s = at - self.began
        timeouts = self.request.timeouts
        self._set_timeouts(timeouts.connect_s - self._lookup_s, timeouts.total_s - self._lookup_s)
        self._timeouts = None

    def _set_timeouts(self, connect_s: float, total_s: float) -> None:
        self.easy.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, math.ceil(connect_s * 1000)))
        self.easy.setopt(pycurl.TIMEOUT_MS, max(1, math.ceil(total_s * 1000)))

    @property
    def heard(self) -> bool:
        """Has any line of an answer come?"""
        return bool(self._lines)

    # What libcurl calls. Returning 0 ends the transfer, returning None takes all.

    def _on_header(self, line: bytes) -> int | None:
        self._lines.append(line)
        if len(line) < 3:  # only the line that ends a block
            return self._end_of_block()
        return None if len(self._lines) < self._limits.header_lines_max else self._too_many_headers()

    def _too_many_headers(self) -> int:
        self._fault = "more header lines or bytes than the limit"
        return 0

    def _end_of_block(self) -> int | None:
        if self._complete:
            return None  # of the trailers
        status = _status_line(self._lines[self._first_line])[0]
        if 100 <= status < 200 and status != 101:
            self._first_line = len(self._lines)  # an interim response: the final one follows
            return None if len(self._lines) < self._limits.header_lines_max else self._too_many_headers()
        if status < 200:
            self._fault = f"the answer has status {status}"
            return 0
        self._head = b"".join(self._lines[self._first_line :])
        if len(self._head) > self._limits.header_bytes_max:
            return self._too_many_headers()
        self._status = status
        self._complete = True
        return None

    def _on_body(self, chunk: bytes) -> int | None:
        kept = self._body_bytes
        self._body_bytes += len(chunk)
        if self._body_bytes > self._limits.body_bytes_max:
            self._chunks.append(chunk[: self._limits.body_bytes_max - kept])
            return 0
        self._chunks.append(chunk)
        return None

    def _open_socket(self, _purpose: int, address: Any) -> int:
        family, kind, protocol, where = address
        if family not in (socket.AF_INET, socket.AF_INET6):
            self._refused = f"address family {family}"
            return int(pycurl.SOCKET_BAD)
        host, port = where[0], where[1]
        proxy = self._egress.proxy  # all sockets lead to it, if there is one
        reason = verdict(host, self._egress.allow_networks if proxy is None else ANYWHERE)
        if reason is None and proxy is None and not self._egress.port_allowed(port):
            reason = f"port {port} is not allowed"
        if reason is not None:
            self._refused = f"{host}: {reason}"
            return int(pycurl.SOCKET_BAD)
        try:
            opened = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:  # no IPv6 here: the next candidate may do
                self._no_socket = f"no socket: {error}"
            return int(pycurl.SOCKET_BAD)
        self._tried = host
        self._registered.pop(opened.fileno(), None)  # whatever had this number is closed
        return opened.detach()

    # What it came to.

    def outcome(self, code: int, message: str) -> Outcome:
        """The outcome of a transfer that libcurl ended with ``code`` (0 is success)."""
        if self._complete:
            return self._answered(body_cut=code != 0)
        error_code = self._error_code(code, message)
        detail = (
            self._fault
            or self._no_socket
            or (self._refused or message if error_code is ErrorCode.ADDRESS_FORBIDDEN else message)
        )
        return self._measured(Outcome(error_code, detail=detail[:DETAIL_CHARS_MAX], ours=self._ours))

    def late(self, at: float) -> Outcome:
        """The outcome when no byte has come in time."""
        if self._before_the_tunnel():
            code = self._proxy_error()
        else:
            code = ErrorCode.FIRST_BYTE_TIMEOUT if self._connected() else ErrorCode.CONNECT_TIMEOUT
        detail = f"no byte of an answer within {at - self.began:.2f} s"
        return self._measured(Outcome(code, detail=detail, ours=self._ours))

    def broken(self, detail: str, finished_at: float) -> Outcome:
        """The outcome when libcurl itself gave up."""
        return Outcome(
            ErrorCode.INTERNAL_ERROR,
            started_at=self._started_at,
            finished_at=finished_at,
            detail=detail[:DETAIL_CHARS_MAX],
        )

    def forbidden(self, reason: str) -> Outcome:
        """The outcome when the proxy may be told none of the name's addresses."""
        return Outcome(ErrorCode.ADDRESS_FORBIDDEN, started_at=self._started_at, detail=reason[:DETAIL_CHARS_MAX])

    def unresolved(self, detail: str, at: float) -> Outcome:
        """The outcome when the name could not be looked up."""
        return Outcome(
            ErrorCode.DNS_FAILURE,
            started_at=self._started_at,
            dns_ms=int((at - self.began) * 1000),
            detail=detail[:DETAIL_CHARS_MAX],
        )

    def _answered(self, *, body_cut: bool) -> Outcome:
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        error_code = http_error_code(self._status)
        acks = self.request.acks
        if acks is not None and error_code is None and not acknowledged(self._head, acks):
            error_code = ErrorCode.BAD_ACK
        kept = self._limits.head_bytes_success if error_code is None else self._limits.head_bytes_failure
        outcome = Outcome(error_code, self._status)
        if error_code is not None:
            outcome.retry_after = _retry_after(self._head)
        outcome.response_head = (self._head + body[:kept])[:kept]
        outcome.response_hash = _short_hash(body) if len(body) <= _SHORT_BODY_BYTES else sha256(body).digest()
        outcome.body_cut = body_cut
        return self._measured(outcome)

    def _error_code(self, code: int, message: str) -> ErrorCode:
        if self._fault:
            return ErrorCode.PROTOCOL_ERROR
        if sum(map(len, self._lines)) > self._limits.header_bytes_max:
            return ErrorCode.PROTOCOL_ERROR  # libcurl's own limit, 300 KiB, calls it a receive error
        if self._no_socket and not self._tried:
            return ErrorCode.INTERNAL_ERROR
        if self._refused and not self._tried:
            return ErrorCode.ADDRESS_FORBIDDEN
        if self._before_the_tunnel():
            return self._proxy_error()
        if code == pycurl.E_COULDNT_CONNECT:
            return _CONNECT_ERRORS.get(self.easy.getinfo(pycurl.OS_ERRNO), ErrorCode.NETWORK_UNREACHABLE)
        if code == pycurl.E_RECV_ERROR and self.target.scheme == "https" and " alert " in message:
            # TLS 1.3: a receiver that wants another certificate says so behind the handshake.
            return ErrorCode.TLS_FAILURE
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return ErrorCode.TOTAL_TIMEOUT if self._connected() else ErrorCode.CONNECT_TIMEOUT
        return _CURL_ERRORS.get(code, ErrorCode.INTERNAL_ERROR)

    def _before_the_tunnel(self) -> bool:
        """Is there a proxy, and did it not (yet) say that its tunnel stands?"""
        if self._egress.proxy is None:
            return False
        if not self._tried:
            return not self.easy.getinfo(pycurl.PRIMARY_IP)  # else a tunnel that was kept
        return bool(self.easy.getinfo(pycurl.HTTP_CONNECTCODE) // 100 != 2)

    def _proxy_error(self) -> ErrorCode:
        """What the proxy's failure is. One that answers nothing, or 5xx, may have met a sick receiver; one that cannot
        be reached, or does not let us in, is our own affair for certain."""
        answered = self.easy.getinfo(pycurl.HTTP_CONNECTCODE)
        if answered == HTTPStatus.FORBIDDEN:
            return ErrorCode.ADDRESS_FORBIDDEN  # the operator's policy, told by the proxy
        unreached = not answered and not self.easy.getinfo(pycurl.CONNECT_TIME_T)
        self._ours = unreached or answered == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        return ErrorCode.EGRESS_PROXY_ERROR

    def _connected(self) -> bool:
        """Was there a connection to send on, TLS included?"""
        if not self._tried:
            return bool(self.easy.getinfo(pycurl.PRIMARY_IP))  # a kept one, or none yet
        done_at = pycurl.APPCONNECT_TIME_T if self.target.scheme == "https" else pycurl.CONNECT_TIME_T
        return bool(self.easy.getinfo(done_at) > 0)

    def _measured(self, outcome: Outcome) -> Outcome:
        """Add what was measured: dns, connect and tls are spans, first_byte counts from the start."""
        info = self.easy.getinfo
        outcome.started_at = self._started_at
        outcome.dns_ms = lookup_ms = int(self._lookup_s * 1000)
        if self._lines:
            outcome.first_byte_ms = lookup_ms + info(pycurl.STARTTRANSFER_TIME_T) // 1000
            outcome.protocol = _status_line(self._lines[0])[1]
        if self._tried:  # a new connection
            named, connected = info(pycurl.NAMELOOKUP_TIME_T), info(pycurl.CONNECT_TIME_T)
            outcome.dns_ms += named // 1000
            outcome.connect_ms = max(0, connected - named) // 1000
            outcome.tls_ms = max(0, info(pycurl.APPCONNECT_TIME_T) - connected) // 1000
        outcome.address = info(pycurl.PRIMARY_IP) or self._tried
        if self._egress.proxy is not None:
            outcome.address = self._tunnel_end
        outcome.request_bytes = info(pycurl.REQUEST_SIZE)
        outcome.response_bytes = (len(self._head) or sum(map(len, self._lines))) + self._body_bytes
        return outcome


def bracketed(address: str) -> str:
    """An address as it stands before a port."""
    return f"[{address}]" if ":" in address else address


def _no_more(name: Name) -> str:
    """What makes libcurl forget its addresses."""
    return f"-{bracketed(name[0])}:{name[1]}"


@lru_cache(maxsize=1024)
def _status_line(line: bytes) -> tuple[int, str]:
    """The status in a status line that libcurl has accepted, 0 if there is none; and the protocol."""
    parts = line.split(None, 2)
    status = int(parts[1]) if len(parts) > 1 and len(parts[1]) == 3 and parts[1].isdigit() else 0
    return status, _PROTOCOLS.get(line.partition(b" ")[0], "")


def _retry_after(head: bytes) -> bytes | None:
    """The value of the last Retry-After header of a head, as it came."""
    at = head.lower().rfind(b"\nretry-after:")
    if at < 0:
        return None
    return head[at + len(b"\nretry-after:") :].partition(b"\n")[0].strip()


@lru_cache(maxsize=1024)
def _short_hash(body: bytes) -> bytes:
    """Most answers are empty or one of a few words; OpenSSL takes 3 µs to begin a hash."""
    return sha256(body).digest()


_CONNECT_ERRORS = {
    errno.ECONNREFUSED: ErrorCode.CONNECT_REFUSED,
    errno.ETIMEDOUT: ErrorCode.CONNECT_TIMEOUT,
    errno.ECONNRESET: ErrorCode.CONNECTION_RESET,
}
"""What ``connect`` failed with; everything else (ENETUNREACH, EHOSTUNREACH, …) means that there is no way there."""

_CURL_ERRORS = {
    pycurl.E_OK: ErrorCode.CONNECTION_RESET,  # the receiver hung up inside the header block; libcurl lets it pass
    pycurl.E_UNSUPPORTED_PROTOCOL: ErrorCode.PROTOCOL_ERROR,  # an HTTP/0.9 answer: other schemes never reach libcurl
    pycurl.E_URL_MALFORMAT: ErrorCode.INVALID_URL,
    pycurl.E_COULDNT_RESOLVE_HOST: ErrorCode.DNS_FAILURE,
    pycurl.E_FTP_WEIRD_SERVER_REPLY: ErrorCode.PROTOCOL_ERROR,  # CURLE_WEIRD_SERVER_REPLY, 8
    pycurl.E_HTTP2: ErrorCode.PROTOCOL_ERROR,
    pycurl.E_PARTIAL_FILE: ErrorCode.CONNECTION_RESET,
    pycurl.E_SSL_CONNECT_ERROR: ErrorCode.TLS_FAILURE,
    pycurl.E_GOT_NOTHING: ErrorCode.CONNECTION_RESET,
    pycurl.E_SEND_ERROR: ErrorCode.CONNECTION_RESET,
    pycurl.E_RECV_ERROR: ErrorCode.CONNECTION_RESET,
    pycurl.E_SSL_CERTPROBLEM: ErrorCode.TLS_FAILURE,
    pycurl.E_SSL_CIPHER: ErrorCode.TLS_FAILURE,
    pycurl.E_PEER_FAILED_VERIFICATION: ErrorCode.TLS_UNTRUSTED,
    pycurl.E_BAD_CONTENT_ENCODING: ErrorCode.PROTOCOL_ERROR,
    pycurl.E_SSL_INVALIDCERTSTATUS: ErrorCode.TLS_UNTRUSTED,
    92: ErrorCode.PROTOCOL_ERROR,  # CURLE_HTTP2_STREAM, not named by pycurl
    100: ErrorCode.PROTOCOL_ERROR,  # CURLE_TOO_LARGE, a header line beyond libcurl's own limit
}
