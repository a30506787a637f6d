"""Endpoints know the version in which their routes last changed."""

from pathlib import Path

from alembic import context

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0026_routed_in.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
