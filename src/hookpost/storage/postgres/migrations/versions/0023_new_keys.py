"""Keys that are all new are not looked up again."""

from pathlib import Path

from alembic import context

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0023_new_keys.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
