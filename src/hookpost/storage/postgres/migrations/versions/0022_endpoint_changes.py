"""When each endpoint has changed."""

from pathlib import Path

from alembic import context

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0022_endpoint_changes.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
