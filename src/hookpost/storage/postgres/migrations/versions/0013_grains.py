"""Rollups of several grains beside one another, each whole, and the time from acceptance to 2xx."""

from pathlib import Path

from alembic import context

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0013_grains.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
