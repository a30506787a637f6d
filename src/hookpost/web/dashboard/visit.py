"""One request of one person: who it is, what was asked, and how to answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hookpost.model import IdError, parse_id
from hookpost.web.api import Api
from hookpost.web.auth import Authenticator, Principal
from hookpost.web.dashboard.ask import Asker
from hookpost.web.dashboard.entered import SignIns
from hookpost.web.dashboard.forms import Form
from hookpost.web.dashboard.recent import Recent
from hookpost.web.dashboard.render import Renderer
from hookpost.web.dashboard.session import Session, Sessions
from hookpost.web.dashboard.throttle import Throttle
from hookpost.web.problems import invalid, not_found

# After a form the browser asks for a page anew, so that a reload sends nothing again.
SEE_OTHER = 303
# Told once on the page behind a redirect; the text is ours, by its name.
NOTICES = {
    "replayed": "Replay accepted: it is delivered once more, behind what was there before it.",
    "nothing_to_replay": "Nothing was replayed: no endpoint that this event was owed to exists any more.",
    "retrying": "What waits is tried now.",
    "cancelled": "What was not delivered yet is cancelled.",
    "nothing_waits": "Nothing waits, so there was nothing to do.",
    "paused": "Paused: what is owed to this endpoint waits.",
    "resumed": "Resumed: what waits is delivered again, and the breaker is closed.",
    "saved": "Saved.",
    "created": "Created.",
    "deleted": "Deleted.",
    "revoked": "Revoked: the key stops working within a second.",
    "replay_cancelled": "The bulk replay is cancelled; what it has put into the journal is delivered.",
}


@dataclass(frozen=True, slots=True)
class Desk:
    """What all pages work with, one for each application."""

    api: Api
    ask: Asker
    authenticator: Authenticator
    sessions: Sessions
    throttle: Throttle
    renderer: Renderer
    sign_ins: SignIns
    recent: Recent
    public_url: str | None

    def now(self) -> float:
        """Unix seconds by the installation's clock."""
        return self.api.settings.now()


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of somebody who has signed in. ``form`` is empty but for a POST."""

    desk: Desk
    request: Request
    session: Session
    principal: Principal
    query: Form
    form: Form

    async def ask(self, path: str, **query: Any) -> dict[str, Any]:
        """What the API tells this person; raises Refusal."""
        return await self.desk.ask(self.principal, "GET", path, **query)

    async def act(self, method: str, path: str, *, tenant_id: str | None, form: Any = None) -> dict[str, Any]:
        """Do something for a tenant; the admin acts for the one that the thing belongs to. Raises Refusal."""
        return await self.desk.ask(self.acting(tenant_id), method, path, form=form)

    def acting(self, tenant_id: str | None) -> Principal:
        """This person, for a tenant."""
        if not self.principal.admin or tenant_id is None:
            return self.principal
        return replace(self.principal, tenant_id=UUID(tenant_id.removeprefix("ten_")))

    def tenant(self) -> UUID | None:
        """The tenant that the page is about: one's own, or the one that the admin chose (None: all)."""
        self.principal.require("read")
        wanted = self.query.optional("tenant_id")
        if wanted is None or not self.principal.admin:
            return self.principal.tenant_id
        try:
            return parse_id("ten", wanted)
        except IdError as error:
            raise invalid("tenant_id", str(error)) from error

    def tenant_filter(self) -> str | None:
        """The parameter of that for the API; a tenant's own key needs none."""
        return self.query.optional("tenant_id") if self.principal.admin else None

    def may(self, scope: str) -> bool:
        """Does the key allow it? Pages leave out what it does not; the API refuses it in any case."""
        return scope in self.principal.scopes

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page within the frame."""
        notice = NOTICES.get(self.query.text("did"))
        body = self.desk.renderer.page(
            template,
            visit=self,
            now=self.desk.now(),
            csrf=self.session.csrf,
            here=self.request.url.path,
            tenant_filter=self.tenant_filter(),
            **{"notice": notice, "problem": None, "status": status, **values},
        )
        return Response(body, status, media_type="text/html")

    def path_id(self, prefix: str, name: str, what: str) -> UUID:
        """An id of the path; Problem 404 for what is none."""
        try:
            return parse_id(prefix, self.request.path_params[name])
        except IdError as error:
            raise not_found(what) from error


def see(path: str, **query: str) -> Response:
    """Go on to a page."""
    parameters = "&".join(f"{name}={value}" for name, value in query.items())
    return RedirectResponse(f"{path}?{parameters}" if parameters else path, SEE_OTHER)
