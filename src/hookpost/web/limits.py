"""How a rate limit is told in HTTP: the fields `RateLimit-Policy` and `RateLimit`.

They are those of draft-ietf-httpapi-ratelimit-headers-10 (27 September 2025): lists of structured items (RFC 9651),
each named by its policy. `RateLimit-Policy: "ingest";q=100;w=1` says 100 units in a window of 1 s; an event is one
unit, so a batch takes as many as it has events. `RateLimit: "ingest";r=50;t=1` says that 50 are left at the process
that answered, and in how many seconds there are as many as there ever are. All are whole numbers. On a refusal `t` is
the moment that `Retry-After` tells, as the draft asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hookpost.policy.ingest_limit import Standing

POLICY = "ingest"


def limit_headers(standing: Standing) -> Mapping[str, str]:
    """Of the answers to a tenant that has a limit."""
    quota, window_s = (int(standing.limit), 1) if standing.limit >= 1 else (1, math.ceil(1 / standing.limit))
    return {
        "RateLimit-Policy": f'"{POLICY}";q={quota};w={window_s}',
        "RateLimit": f'"{POLICY}";r={standing.left};t={math.ceil(standing.wait_s)}',
    }
