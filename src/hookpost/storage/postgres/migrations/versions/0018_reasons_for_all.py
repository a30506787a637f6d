"""A bulk replay's reason where processes of earlier releases heed it."""

from pathlib import Path

from alembic import context

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0018_reasons_for_all.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
