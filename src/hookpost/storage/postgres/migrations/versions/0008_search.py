"""Indexes of what people look for."""

from pathlib import Path

from alembic import context

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0008_search.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
