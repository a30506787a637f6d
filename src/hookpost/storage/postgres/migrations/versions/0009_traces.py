"""The trace that an event was posted in, and what an endpoint is told of it."""

from pathlib import Path

from alembic import context

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0009_traces.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
