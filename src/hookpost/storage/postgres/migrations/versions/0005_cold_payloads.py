"""Cold payloads in segments."""

from pathlib import Path

from alembic import context

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0005_cold_payloads.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
