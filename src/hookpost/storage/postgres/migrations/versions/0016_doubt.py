"""What is doubtful when the database's clock was set back."""

from pathlib import Path

from alembic import context

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0016_doubt.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
