"""A replay is numbered as no other that is recorded."""

from pathlib import Path

from alembic import context

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0028_numbers_of_replays.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
