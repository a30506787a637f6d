"""Dead letters: by reason and endpoint, and back into the journal, some or all."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from hookpost.model import DeadReason, show_id
from hookpost.storage.contract import DEAD_GROUPED_MAX
from hookpost.web.dashboard.pages.search import endpoint_names
from hookpost.web.dashboard.render import with_query
from hookpost.web.dashboard.visit import Visit, see
from hookpost.web.problems import invalid

PATH = "/dashboard/dead-letters"
LISTED = 50
_FILTERS = ("reason", "endpoint_id", "since", "until")


async def show(visit: Visit) -> Response:
    """The page."""
    chosen = _chosen(visit)
    answer = await visit.ask("/v1/dead_letters", **chosen, cursor=visit.query.optional("cursor"), limit=LISTED)
    groups = [
        {**row, "endpoint_id": show_id("ep", row["endpoint_id"])}
        for row in await visit.desk.api.store.dead_letter_groups(visit.tenant())
    ]
    cursor = answer["next_cursor"]
    return visit.page(
        "dead_letters.html",
        letters=answer["data"],
        chosen=chosen,
        reasons=[reason.value for reason in DeadReason],
        groups=groups,
        grouped_max=DEAD_GROUPED_MAX,
        names=await endpoint_names(visit, [*answer["data"], *groups, *([chosen] if chosen["endpoint_id"] else [])]),
        next_url=with_query(PATH, **chosen, cursor=cursor) if cursor else None,
        may_replay=visit.may("replay"),
        # A bulk replay is of one tenant.
        may_replay_all=not visit.principal.admin or bool(chosen["tenant_id"] or chosen["endpoint_id"]),
    )


async def replay(visit: Visit) -> Response:
    """Deliver the chosen ones once more, and show what the same filter leaves."""
    chosen = [text.split(" ") for text in visit.form.all("delivery")]
    if not chosen:
        raise invalid("delivery", "choose some first")
    if len(chosen) > LISTED or any(len(parts) != 3 for parts in chosen):
        raise invalid("delivery", f"at most {LISTED} at once: for more there is the bulk replay")
    for event_id, endpoint_id, tenant_id in chosen:
        await visit.act("POST", f"/v1/events/{event_id}/replay", tenant_id=tenant_id, form={"endpoint_id": endpoint_id})
    return see(with_query(PATH, **_chosen(visit), did="replayed"))


def _chosen(visit: Visit) -> dict[str, Any]:
    """The filter in the URL."""
    return {name: visit.query.optional(name) for name in _FILTERS} | {"tenant_id": visit.tenant_filter()}
