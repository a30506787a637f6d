"""One row of the rollups for each endpoint and bucket, with tallies in it."""

from pathlib import Path

from alembic import context

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0025_tallies.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
