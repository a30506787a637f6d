"""Authorities and client certificates of endpoints' own."""

from pathlib import Path

from alembic import context

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0007_tls.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
