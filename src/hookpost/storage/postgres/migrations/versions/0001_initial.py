"""The first schema."""

from pathlib import Path

from alembic import context

revision = "0001"
down_revision = None


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0001_initial.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
