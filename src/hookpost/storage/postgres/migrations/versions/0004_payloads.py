"""Payloads outside of the database, and partitions that leave."""

from pathlib import Path

from alembic import context

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0004_payloads.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
