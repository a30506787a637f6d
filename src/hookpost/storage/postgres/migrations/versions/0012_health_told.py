"""When the health of an endpoint changed, for the other workers that deliver to it."""

from pathlib import Path

from alembic import context

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0012_health_told.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
