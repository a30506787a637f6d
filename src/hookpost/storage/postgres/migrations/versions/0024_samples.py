"""Growing tables are analyzed by smaller samples."""

from pathlib import Path

from alembic import context

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0024_samples.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
