"""Where an append stands, so that it can be told."""

from pathlib import Path

from alembic import context

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0019_placed.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
