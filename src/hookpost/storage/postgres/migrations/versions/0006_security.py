"""Secrets sealed at rest, headers of endpoints, the audit log."""

from pathlib import Path

from alembic import context

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0006_security.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
