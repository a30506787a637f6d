"""Signing in with an API key, and signing out."""

from __future__ import annotations

import math
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response

from hookpost import telemetry
from hookpost.storage.contract import SecretLocked, StoreUnavailable
from hookpost.web.dashboard import guard
from hookpost.web.dashboard.forms import Form, read_form
from hookpost.web.dashboard.session import COOKIE, NONCE_BYTES, SESSION_S_MAX
from hookpost.web.dashboard.visit import Desk, Visit, see
from hookpost.web.problems import Problem

PATH = "/dashboard"


async def answer(desk: Desk, request: Request) -> Response:
    """The form, or what becomes of it."""
    if request.method != "POST":
        return _form(desk, next_=Form.parse(request.url.query).text("next"))
    form = await read_form(dict(request.scope["headers"]), request.receive)
    address = request.client.host if request.client else ""
    wait_s = desk.throttle.wait_s(address, desk.now())
    if wait_s > 0:
        text = f"Too many attempts from your address. Try again in {math.ceil(wait_s)} s."
        response = _form(desk, 429, text, form.text("next"))
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
        return _form(desk, 401, "This key is not valid: it is unknown, expired or revoked.", form.text("next"))
    except StoreUnavailable:
        return _form(desk, 503, "The store does not answer at the moment. Try again.", form.text("next"))
    desk.throttle.succeeded(address)
    response = see(guard.safe_target(form.text("next")))
    _set_cookie(desk, response, desk.sessions.seal(reference, now=desk.now(), nonce=_nonce(desk)), SESSION_S_MAX)
    return response


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
        COOKIE,
        value,
        max_age=int(age_s),
        path=PATH,
        httponly=True,
        samesite="lax",
        secure=desk.public_url is not None and desk.public_url.startswith("https://"),
    )


def _form(desk: Desk, status: int = 200, problem: str | None = None, next_: str = "") -> Response:
    body = desk.renderer.page("sign_in.html", problem=problem, next=guard.safe_target(next_))
    return Response(body, status, media_type="text/html")
