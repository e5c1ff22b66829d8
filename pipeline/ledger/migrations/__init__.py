"""How the tables came to be, step by step (Alembic): an older ledger is brought up to date when it is opened.

To change the schema: change `tables.py`, add `versions/0002_….py` and raise `HEAD`; the tests compare the two.
"""

from sqlalchemy import Connection, inspect, text

HEAD = "0002"  # the newest of versions/; revisions are numbers, so that older and newer can be told
VERSION = "feral_ledger_version"  # the table that holds it; the database may hold those of others


def revision(connection: Connection) -> str | None:
    """The schema that a database has; None: no ledger is there."""
    if not inspect(connection).has_table(VERSION):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION}")).scalar_one_or_none()


def migrate(connection: Connection, to: str = HEAD) -> None:
    """Takes all steps up to a revision, in the transaction of `connection`: who comes second finds them done."""
    from alembic import command  # slow to import, and seldom needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "pipeline.ledger:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, to)
