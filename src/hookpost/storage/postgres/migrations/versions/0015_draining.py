"""Shards that are taken out of use."""

from pathlib import Path

from alembic import context

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0015_draining.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
