"""Rollups of attempts for ever, metering by tenant and day."""

from pathlib import Path

from alembic import context

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0003_rollups.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
