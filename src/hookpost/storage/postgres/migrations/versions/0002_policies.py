"""Traffic policies: limits, order, breakers, alerts, spreads, bulk replays."""

from pathlib import Path

from alembic import context

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0002_policies.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
