"""Keys and tenants are looked up one by one, whatever a plan was made for."""

from pathlib import Path

from alembic import context

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0021_young_tables.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
