"""Signing in with an API key, and signing out."""

from __future__ import annotations

import math
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response

from hookpost import telemetry
from hookpost.storage.contract import SecretLocked, StoreUnavailable
from hookpost.web.dashboard import guard, render
from hookpost.web.dashboard.forms import Form, read_form
from hookpost.web.dashboard.session import NONCE_BYTES, SESSION_S_MAX, cookie_of
from hookpost.web.dashboard.visit import Desk, Visit, see
from hookpost.web.problems import Problem

PATH = "/dashboard"
ENDED, UNSENT = "ended", "unsent"
# Why somebody who had signed in is here again; the text is ours, by its name.
WHY = {
    ENDED: "Your session has ended. Sign in to go on where you were.",
    UNSENT: "Your session has ended, and nothing of what you sent was done. Sign in, and send it again.",
}


async def answer(desk: Desk, request: Request) -> Response:
    """The form, or what becomes of it."""
    if request.method != "POST":
        query = Form.parse(request.url.query)
        return _form(next_=query.text("next"), notice=WHY.get(query.text("why")))
    form = await read_form(dict(request.scope["headers"]), request.receive)
    address = request.client.host if request.client else ""
    wait_s = desk.throttle.wait_s(address, desk.now()) or await _wait_elsewhere_s(desk, address)
    if wait_s > 0:
        text = f"Too many attempts from your address. Try again in {math.ceil(wait_s)} s."
        response = _form(429, text, form.text("next"))
        response.headers["Retry-After"] = str(math.ceil(wait_s))
        return response
    try:
        reference = await desk.authenticator.reference(form.text("key"))
        await desk.sign_ins.signed_in(await desk.authenticator.referred(reference), address)
    except Problem:
        desk.throttle.failed(address, desk.now())
        telemetry.log("sign_in_refused", address=address)
        # Nobody was let in: an answer does not wait for a store that is away.
        with suppress(StoreUnavailable, SecretLocked):
            await desk.sign_ins.refused(address, now=desk.now())
        return _form(401, "This key is not valid: it is unknown, expired or revoked.", form.text("next"))
    except StoreUnavailable:
        return _form(503, "The store does not answer at the moment. Try again.", form.text("next"))
    desk.throttle.succeeded(address)
    response = see(guard.safe_target(form.text("next")))
    _set_cookie(desk, response, desk.sessions.seal(reference, now=desk.now(), nonce=_nonce(desk)), SESSION_S_MAX)
    return response


async def _wait_elsewhere_s(desk: Desk, address: str) -> float:
    """Without a store nobody is let in, and the answer says so."""
    with suppress(StoreUnavailable):
        return await desk.sign_ins.wait_s(address)
    return 0.0


async def sign_out(visit: Visit) -> Response:
    """Forget the session; what the cookie said stays good nowhere but in this browser."""
    await visit.desk.sign_ins.signed_out(visit.principal)
    response = see(PATH + "/sign-in")
    _set_cookie(visit.desk, response, "", 0)
    return response


def _nonce(desk: Desk) -> bytes:
    return desk.api.settings.random_bytes(NONCE_BYTES)


def _set_cookie(desk: Desk, response: Response, value: str, age_s: float) -> None:
    """Lax, not strict: a link that somebody shares must find its reader signed in. No GET changes anything."""
    response.set_cookie(
        cookie_of(secure=desk.secure),
        value,
        max_age=int(age_s),
        path="/" if desk.secure else PATH,
        httponly=True,
        samesite="lax",
        secure=desk.secure,
    )


def _form(status: int = 200, problem: str | None = None, next_: str = "", notice: str | None = None) -> Response:
    body = render.page("sign_in.html", problem=problem, next=guard.safe_target(next_), notice=notice)
    return Response(body, status, media_type="text/html")
