"""Run by Alembic, on the connection that `migrate` gives."""

from alembic import context

from pipeline.ledger.migrations import VERSION
from pipeline.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION,
    render_as_batch=True,  # SQLite cannot alter a table, only write it anew
)
with context.begin_transaction():
    context.run_migrations()
