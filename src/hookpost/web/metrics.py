"""The page of metrics, for whoever has the admin key; without a key it has a listener of its own (METRICS_LISTEN)."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from hookpost.web.api import Admin, ApiOf

router = APIRouter()


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus's text, or OpenMetrics where accepted"}},
    tags=["figures"],
)
async def get_metrics(api: ApiOf, _: Admin, request: Request) -> Response:
    """The figures of this server's processes and of the platform, for Prometheus (admin)."""
    page, media_type = await api.metrics.page(request.headers.get("accept", ""))
    return Response(page, headers={"content-type": media_type})
