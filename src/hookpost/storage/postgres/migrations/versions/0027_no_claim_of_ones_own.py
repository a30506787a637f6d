"""Nobody claims shards that are its own."""

from pathlib import Path

from alembic import context

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0027_no_claim_of_ones_own.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
