"""Bulk replays of what died of one reason."""

from pathlib import Path

from alembic import context

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0017_replays_by_reason.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
