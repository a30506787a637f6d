"""What a journal in Kafka needs: how far each partition was taken over, and idempotency keys that are only reserved."""

from pathlib import Path

from alembic import context

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    sql = Path(__file__).parent.parent.joinpath("0010_kafka.sql").read_text(encoding="utf-8")
    context.get_context().impl.static_output(sql)
