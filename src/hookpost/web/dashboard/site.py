"""Every request under /dashboard: checked, routed, and answered with a page.

In this order: is it our host; a static file; did one of our own pages send the form; who is it; is the form made for
this session. Only then a page's own code runs. Whatever goes wrong is a page, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import SplitResult, quote, urlsplit

from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from hookpost.storage.acting import Actor, act_as
from hookpost.storage.contract import NotFound, StoreUnavailable
from hookpost.web import problems
from hookpost.web.api import Api
from hookpost.web.auth import Authenticator
from hookpost.web.dashboard import guard, words
from hookpost.web.dashboard.ask import AsgiApp, Asker, Refusal
from hookpost.web.dashboard.entered import SignIns
from hookpost.web.dashboard.forms import Form, read_form
from hookpost.web.dashboard.pages import ROUTES, sign_in
from hookpost.web.dashboard.recent import Recent
from hookpost.web.dashboard.render import STATIC_TYPES, page, static_file
from hookpost.web.dashboard.session import Sessions, cookie_of, is_own_form
from hookpost.web.dashboard.throttle import Throttle
from hookpost.web.dashboard.visit import Desk, Visit, see
from hookpost.web.problems import Problem, refusal

PREFIX = "/dashboard"
# Its URL changes with its content, so it may be kept for ever.
_STATIC_CACHE = "public, max-age=31536000, immutable"
Page: TypeAlias = Callable[[Visit], Awaitable[Response]]


class Dashboard:
    """The ASGI application of the dashboard."""

    def __init__(
        self, app: AsgiApp, api: Api, authenticator: Authenticator, *, secret: bytes, public_url: str | None
    ) -> None:
        self._desk = Desk(
            api, Asker(app), authenticator, Sessions(secret), Throttle(), SignIns(api.store), Recent(),
            public_url,
        )  # fmt: skip
        routes = [Route(PREFIX + path, self._endpoint(show), methods=[method]) for path, method, show in ROUTES]
        self._router = Router(
            [
                Route(PREFIX + "/static/{name}", self._static),
                Route(PREFIX + "/sign-in", self._sign_in, methods=["GET", "POST"]),
                *routes,
            ],
            redirect_slashes=False,
            default=self._nowhere,
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""

        started = False

        async def guarded(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name for name, _ in message["headers"]}
                extra = [(name.lower().encode(), value.encode()) for name, value in guard.HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in present)]
            await send(message)

        request = Request(scope, receive)
        try:
            _check_origin(request, self._desk.public_url)
            # With an app in its scope, Starlette raises what it would otherwise answer with a line of text.
            await self._router({**scope, "app": self}, receive, guarded)
        except Exception as error:
            if started:  # half of a file is sent: it ends here, and whoever takes it sees that it is cut
                raise
            await self._fault(request, error)(scope, receive, guarded)

    def _endpoint(self, show: Page) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                visit = await self._visit(request)
            except Problem as refused:
                if refused.status != 401:
                    raise
                return _to_sign_in(request, self._desk)
            try:
                return await show(visit)
            except Refusal as refusal_:
                return _problem_page(visit, refusal_.status, refusal_.text)
            except Exception as error:  # noqa: BLE001 - see __call__
                problem = problems.problem_of(error, f"{request.method} {request.scope['route'].path}")
                return _problem_page(visit, problem.status, problem.detail)

        return answer

    async def _visit(self, request: Request) -> Visit:
        cookie = request.cookies.get(cookie_of(secure=self._desk.secure))
        session = self._desk.sessions.read(cookie, now=self._desk.now())
        if session is None:
            raise refusal(401, "sign in first")
        principal = await self._desk.authenticator.referred(session.reference)
        act_as(Actor(principal.name, request.client.host if request.client else ""))
        form = Form({})
        if request.method == "POST":
            form = await read_form(dict(request.scope["headers"]), request.receive)
            if not is_own_form(session, form.text("csrf")):
                raise refusal(403, "this form was made for another session: go back, reload the page and try again")
        visit = Visit(self._desk, request, session, principal, Form.parse(request.url.query), form)
        return replace(visit, whose=await _whose(visit))

    async def _sign_in(self, request: Request) -> Response:
        return await sign_in.answer(self._desk, request)

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC_TYPES:
            return self._nowhere_page()
        content, version = static_file(name)
        headers = {"ETag": f'"{version}"', "Cache-Control": _STATIC_CACHE}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=STATIC_TYPES[name], headers=headers)

    async def _nowhere(self, scope: Any, receive: Any, send: Any) -> None:
        await self._nowhere_page()(scope, receive, send)

    def _nowhere_page(self) -> Response:
        return self._bare(404, "There is no such page.")

    def _fault(self, request: Request, error: Exception) -> Response:
        problem = problems.problem_of(error, f"{request.method} {PREFIX}")
        if problem.status == 405:
            return self._bare(405, words.NO_PAGE, dict(problem.headers))
        text = _told(request, problem.detail)
        return self._bare(problem.status, text, dict(problem.headers), again=_may_ask_again(request, problem.status))

    def _bare(self, status: int, text: str, headers: dict[str, str] | None = None, *, again: bool = False) -> Response:
        body = page("bare.html", status=status, text=text, again=again)
        return Response(body, status, headers, media_type="text/html")


async def _whose(visit: Visit) -> str | None:
    """What the tenant that a page is about is called. A page comes without that, too."""
    with suppress(Problem, NotFound, StoreUnavailable):
        of = visit.tenant()
        if of is not None:
            tenant = await visit.desk.recent.get(("tenant", of), partial(visit.desk.api.store.get_tenant, of))
            return str(tenant["name"])
    return None


def _check_origin(request: Request, public_url: str | None) -> None:
    """Problem for a host that is not ours, or a form of another site's page."""
    host = request.headers.get("host", "")
    if not guard.is_own_host(host, public_url):
        raise refusal(421, "this host name is not known here: set HOOKPOST_PUBLIC_URL to the address that people use")
    if request.method == "POST" and not guard.is_own_origin(
        host, request.headers.get("origin"), request.headers.get("sec-fetch-site")
    ):
        raise refusal(403, "this form was not sent by a page of the dashboard")


def _to_sign_in(request: Request, desk: Desk) -> Response:
    """Sign in, and then go on where one was: to the page that was asked for, or the one with the form that was sent."""
    if request.url.path == PREFIX + "/sign-out":
        return see(PREFIX + "/sign-in")
    ended = cookie_of(secure=desk.secure) in request.cookies
    wanted = _place(request.url) if request.method == "GET" else _place(urlsplit(request.headers.get("referer", "")))
    why = {"why": sign_in.UNSENT if request.method == "POST" else sign_in.ENDED} if ended else {}
    onwards = {} if guard.safe_target(wanted) == PREFIX else {"next": quote(wanted, safe="/")}
    return see(PREFIX + "/sign-in", **why, **onwards)


def _place(url: URL | SplitResult) -> str:
    return url.path + (f"?{url.query}" if url.query else "")


def _problem_page(visit: Visit, status: int, text: str) -> Response:
    again = _may_ask_again(visit.request, status)
    return visit.page("problem.html", status, text=_told(visit.request, text), again=again)


def _told(request: Request, text: str) -> str:
    """What the API says of a problem, to somebody who has only looked: nothing of theirs may be stored or not."""
    return words.AWAY if request.method == "GET" and text == problems.unavailable().detail else text


def _may_ask_again(request: Request, status: int) -> bool:
    """Is it a fault that passes, of a page that can be asked for anew?"""
    return request.method == "GET" and status >= 500
