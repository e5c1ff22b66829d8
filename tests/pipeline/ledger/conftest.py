"""Ledgers to test on: a file, and a database of a real PostgreSQL server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.ledger.database import Ledger
from tests.pipeline.ledger.postgres import new_database, running_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Path or URL of a ledger that is not there yet; every test that takes it runs on both."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def ledger(where: str) -> Ledger:
    return Ledger.open(where, create=True)
