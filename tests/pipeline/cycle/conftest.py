"""Ledgers on SQLite and PostgreSQL, as in the tests of the ledger."""

from tests.pipeline.ledger.conftest import postgres, where

__all__ = ["postgres", "where"]
