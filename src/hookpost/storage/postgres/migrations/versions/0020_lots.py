"""An append goes to several shards at once."""

from pathlib import Path

from alembic import context

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0020_lots.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
