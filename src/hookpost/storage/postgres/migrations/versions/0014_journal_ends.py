"""Moves wait, in their order, for what still lies in Kafka."""

from pathlib import Path

from alembic import context

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0014_journal_ends.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
