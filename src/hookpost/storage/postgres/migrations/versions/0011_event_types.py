"""Types of events that a tenant describes, with the schema that payloads must satisfy."""

from pathlib import Path

from alembic import context

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0011_event_types.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
