"""Alembic runs this to set up its context; services.kit.migrations has prepared the connection."""

from alembic import context

_attributes = context.config.attributes
context.configure(
    connection=_attributes["connection"],
    version_table_schema=_attributes["schema"],
    # Each migration commits together with the mark that it ran.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
