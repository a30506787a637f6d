"""What a request must be, and what its answer says to the browser, whatever page it is about. Pure.

The policy allows our own files and nothing else: no script or style in a page, no other host, no frame around it. The
host is checked because a name that somebody else points at this address (DNS rebinding) would be same-origin to itself;
addresses and localhost cannot be pointed anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::\d{1,5})?")


def is_own_host(host: str | None, public_url: str | None) -> bool:
    """Is this value of the Host field one that we are reached by?"""
    match = _HOST.fullmatch(host or "")
    if match is None:
        return False
    name = (match["v6"] or match["name"]).lower()
    if name == "localhost" or _is_address(name):
        return True
    return public_url is not None and name == urlsplit(public_url).hostname


def is_own_origin(host: str, origin: str | None, fetch_site: str | None) -> bool:
    """Did one of our own pages send this form? Browsers say so; what says nothing has no cookie to be abused."""
    if fetch_site is not None and fetch_site not in ("same-origin", "none"):
        return False
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


def safe_target(path: str | None) -> str:
    """Where to go after signing in: a page of ours, whatever a link says."""
    if path and path.startswith("/dashboard") and re.fullmatch(r"/dashboard(?:[/?][\x21-\x5b\x5d-\x7e]*)?", path):
        return path
    return "/dashboard"


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
