"""Kafka as the journal in front of PostgreSQL (docs/adr/0024). Imported only where JOURNAL_URL asks for it."""
