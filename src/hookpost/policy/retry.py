"""What to do after an attempt: delivered, tried again at a time, or dead with a reason.

Pure: `now` and `rng` are arguments. The classes of failure live in `classify`; this file holds the schedule.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from random import Random

from hookpost.model import Dead, DeadReason, Decision, Delivered, ErrorCode, Outcome, Retry, RetryPolicy
from hookpost.policy.classify import classify

# A Retry-After of ten years is as good as any longer one, and no sum with it overflows.
RETRY_AFTER_MAX_S = 10 * 365 * 86400.0
# Our own bug in sending one delivery must not be tried for three days: three times, then it is dead and an alarm.
INTERNAL_ERRORS_MAX = 3

_DELIVERED = Delivered()


def decide(
    outcome: Outcome, *, retry_count: int, deadline: float, policy: RetryPolicy, now: float, rng: Random
) -> Decision:
    """Decide what one attempt's outcome means for its delivery.

    ``retry_count`` is the number of attempts before this one, ``deadline`` the Unix time after which nothing more is
    tried. A retry that would fall behind the deadline is brought forward to it, so that the last attempt comes as
    late as it may; a ``Retry-After`` is never undercut: if it points behind the deadline, the delivery is dead at once.
    """
    if outcome.error_code is None:
        return _DELIVERED
    attempts = retry_count + 1
    if outcome.error_code is ErrorCode.INTERNAL_ERROR and attempts >= INTERNAL_ERRORS_MAX:
        return Dead(DeadReason.INTERNAL_ERROR)
    if not classify(outcome.error_code, outcome.status).retried:
        return Dead(DeadReason.HTTP_4XX)
    if attempts >= policy.max_attempts:
        return Dead(DeadReason.ATTEMPTS_EXHAUSTED)
    if now >= deadline:
        return Dead(DeadReason.DEADLINE)
    held_until = now + retry_after_s(outcome, now=now)
    if held_until > deadline:
        return Dead(DeadReason.RETRY_AFTER_BEYOND_DEADLINE)
    planned = now + backoff_s(attempts, policy=policy, rng=rng)
    return Retry(due_at=min(max(planned, held_until), deadline))


def backoff_s(failures: int, *, policy: RetryPolicy, rng: Random) -> float:
    """Seconds to wait after the given number of failures (1 or more): exponential, capped, equal jitter.

    The step is ``base * 2**(failures - 1)``, at most ``cap``; the wait lies between half of it and all of it
    (AWS Architecture Blog, "Exponential Backoff and Jitter", equal jitter).
    """
    # 2**64 seconds is beyond every cap; the bound keeps the power finite for any count.
    step = min(policy.cap_s, policy.base_s * 2.0 ** min(failures - 1, 64))
    return step / 2 + rng.random() * step / 2


def retry_after_s(outcome: Outcome, *, now: float) -> float:
    """Seconds the receiver asks us to stay away (RFC 9110 §10.2.3), honoured on 429 and 503; else 0."""
    if outcome.retry_after is None or outcome.status not in (429, 503):
        return 0.0
    return parse_retry_after(outcome.retry_after, now=now)


def parse_retry_after(raw: bytes, *, now: float) -> float:
    """Read a Retry-After value: delay in seconds or an HTTP date. What is neither, or lies in the past, is 0."""
    text = raw.strip().decode("latin-1")
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        date = parsedate_to_datetime(text)
        # The asctime form of a date names no zone; all HTTP dates are UTC (RFC 9110 §5.6.7).
        moment = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        return 0.0
    return min(max(0.0, moment - now), RETRY_AFTER_MAX_S)
