"""Hosts that show what they receive to whoever has the address, and addresses that search engines find.

Webhooks pointed there for a test and forgotten are how payloads of production become public: 12,331 of 6.1 million
public URLs gave something away in a study of 2026. Nothing is refused, as they are what a first try is made with. Pure.
"""

from __future__ import annotations

from urllib.parse import urlsplit

PUBLIC_BINS = (
    "beeceptor.com", "hookbin.com", "pipedream.net", "ptsv3.com", "requestbin.com", "requestbin.net",
    "requestcatcher.com", "typedwebhook.tools", "webhook-test.com", "webhook.site",
)  # fmt: skip


def warning_of(url: str) -> str | None:
    """What to say about an endpoint's URL, which is one that was accepted; None: nothing."""
    host = urlsplit(url).hostname or ""
    found = next((name for name in PUBLIC_BINS if host == name or host.endswith(f".{name}")), None)
    if found is None:
        return None
    return f"{found} shows what it receives to everybody who has the address: send test data there, and nothing else"
