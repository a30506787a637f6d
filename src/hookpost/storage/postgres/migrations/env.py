"""Alembic's environment: it writes SQL and never connects; `migrate.py` runs what it writes, under a lock."""

from alembic import context

context.configure(dialect_name="postgresql", literal_binds=True, transactional_ddl=False)
context.run_migrations()
