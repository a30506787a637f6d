"""Looks for certificates of endpoints that end soon, and notes what is to be told in the outbox of alerts (ADR 11)."""

from __future__ import annotations

from hookpost.model import OperationalType
from hookpost.policy.expiry import review
from hookpost.storage.postgres.connection import Connections
from hookpost.storage.postgres.queries import load

SQL = load("certificates")


class CertificateQueries:
    """Implements what MaintenanceStore says of certificates."""

    _connections: Connections

    async def look_at_certificates(self, *, limit: int) -> int:
        async with self._connections.use("look at certificates") as connection, connection.transaction():
            rows = await connection.fetch(SQL["to_look_at"], limit)
            for row in rows:
                found = review(row["tls_ca"], row["tls_cert"], row["tls_told"], now=row["now"])
                for ending in found.endings:
                    await connection.execute(
                        SQL["write_notice"],
                        OperationalType.CERTIFICATE_ENDING,
                        row["tenant_id"],
                        row["endpoint_id"],
                        row["now"],
                        ending.certificate.expires_at,
                        str(ending),
                    )
                await connection.execute(SQL["note_look"], row["endpoint_id"], found.look_at, list(found.told))
        return len(rows)
