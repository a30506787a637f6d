"""One request of one person: who it is, what was asked, and how to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hookpost.model import IdError, parse_id
from hookpost.storage.contract import NotFound
from hookpost.web.api import Api, path_id
from hookpost.web.auth import Authenticator, Principal
from hookpost.web.dashboard import render
from hookpost.web.dashboard.ask import Asker, Refusal
from hookpost.web.dashboard.entered import SignIns
from hookpost.web.dashboard.forms import Form
from hookpost.web.dashboard.recent import Recent
from hookpost.web.dashboard.session import Session, Sessions
from hookpost.web.dashboard.throttle import Throttle
from hookpost.web.problems import invalid, refusal

# After a form the browser asks for a page anew, so that a reload sends nothing again.
SEE_OTHER = 303
# Told once on the page behind a redirect; the text is ours, by its name.
NOTICES = {
    "replayed": "Replay accepted: it is delivered once more, behind what was there before it.",
    "nothing_to_replay": "Nothing was replayed: no endpoint that this event was owed to exists any more.",
    "retrying": "What waits is due now. What is held all the same, by a pause or a breaker, says so below.",
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

_Query = TypeVar("_Query", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Desk:
    """What all pages work with, one for each application."""

    api: Api
    ask: Asker
    authenticator: Authenticator
    sessions: Sessions
    throttle: Throttle
    sign_ins: SignIns
    recent: Recent
    public_url: str | None

    @property
    def secure(self) -> bool:
        """Do people reach it by https?"""
        return self.public_url is not None and self.public_url.startswith("https://")

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
    # The name of the tenant that the page is about; None: all of them, or one that there is not.
    whose: str | None = None

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

    async def tenant_names(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """What the tenants that rows name are called, by id; nothing for whoever sees one tenant alone."""
        if not self.principal.admin:
            return {}
        ids = sorted({row["tenant_id"] for row in rows if row["tenant_id"] is not None})
        names = await asyncio.gather(*(self._tenant_name(parse_id("ten", tenant_id)) for tenant_id in ids))
        return {tenant_id: name for tenant_id, name in zip(ids, names, strict=True) if name is not None}

    async def _tenant_name(self, tenant_id: UUID) -> str | None:
        try:
            tenant = await self.desk.recent.get(
                ("tenant", tenant_id), partial(self.desk.api.store.get_tenant, tenant_id)
            )
        except NotFound:  # what a deleted tenant had is told by its id
            return None
        return str(tenant["name"])

    def may(self, scope: str) -> bool:
        """Does the key allow it? Pages leave out what it does not; the API refuses it in any case."""
        return scope in self.principal.scopes

    def base_url(self) -> str:
        """Where this installation is reached: by what its operator says, or as this browser has reached it."""
        return (self.desk.public_url or f"http://{self.request.headers.get('host', '')}").rstrip("/")

    def page(self, template: str, status: int = 200, *, refused: Refusal | None = None, **values: Any) -> Response:
        """A page within the frame; ``refused``: again, with what the API said of the form that was sent from it."""
        notice, problem = NOTICES.get(self.query.text("did")), None
        if refused is not None:
            status, problem = refused.status, refused.text
        body = render.page(
            template,
            visit=self,
            now=self.desk.now(),
            csrf=self.session.csrf,
            here=self.request.url.path,
            tenant_filter=self.tenant_filter(),
            **{"notice": notice, "problem": problem, "status": status, **values},
        )
        return Response(body, status, media_type="text/html")

    def path_id(self, prefix: str, name: str, what: str) -> UUID:
        """An id of the path; Problem 404 for what is none."""
        return path_id(prefix, self.request.path_params[name], what)


def see(path: str, **query: str) -> Response:
    """Go on to a page."""
    parameters = "&".join(f"{name}={value}" for name, value in query.items())
    return RedirectResponse(f"{path}?{parameters}" if parameters else path, SEE_OTHER)


def read_query(model: type[_Query], given: Mapping[str, Any]) -> _Query:
    """What a route of the API is asked whose answer goes out as it is, a file; what is None is left out. Raises Problem
    422."""
    try:
        return model.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise refusal(422, "this address cannot be read: take the one on the page") from error
