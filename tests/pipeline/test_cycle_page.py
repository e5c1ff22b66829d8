"""The page of a production cycle: an engine's day, with gates, drawn."""

import re
from pathlib import Path

import pytest
from sqlalchemy import Connection

from pipeline.cycle.job import Ended, Job
from pipeline.ledger import promotion
from pipeline.ledger.database import Ledger
from pipeline.report.cycle_page import write_cycle_page
from tests.pipeline.cycle import day
from tests.pipeline.cycle.day import cycle_of, deliver, one_pass, stages

SCORES = {1: (0.41, None), 2: (0.44, 0.40), 3: (0.31, 0.45)}  # of candidate and champion, by dump


def promote(job: Job, digest: str) -> Ended:
    """As the day's, with the rows of a gate: the third dump does harm."""
    candidate, champion = SCORES[job.dump.admit_no]
    rows = [{"kind": "guard", "what": "knn_top1", "candidate": candidate, "champion": champion}] if champion else []
    passed = champion is None or candidate > champion
    mine = day._digest(job.outputs["cooldown"])

    def record(connection: Connection, work_id: str) -> None:
        name = job.cycle.champion
        if passed:
            before = promotion.current(connection, name)
            promotion.promote(connection, name, mine, expected=before, actor="day", reason="better", gate=rows)
        else:
            promotion.hold(connection, name, mine, actor="day", reason="knn_top1: worse", gate=rows)

    state = "promoted" if passed else "held"
    return Ended(state, state, state, "better" if passed else "knn_top1: worse", record)


@pytest.fixture
def page(tmp_path) -> str:
    cycle, where = cycle_of(tmp_path), str(tmp_path / "ledger.db")
    for number, samples in enumerate((("a", "b"), ("c",), ("d",), ("poison",)), 1):
        deliver(tmp_path / "incoming" / f"{number}<b>", *samples)
        one_pass(cycle, where, stages(promote=promote))
    deliver(tmp_path / "incoming" / "5", "e", whole=False)
    one_pass(cycle, where, stages(promote=promote))
    return write_cycle_page(cycle.root, Ledger.open(where), ["web"], "champion", Path("production.toml")).read_text()


def test_the_page_of_a_cycle_says_what_is_in_use_and_what_waits(page) -> None:
    assert "champion is 0002-" in page
    assert "Dump 4 is quarantined: poison" in page
    assert "feral ledger retry 4 --reason" in page
    assert "Dump 3 is held: knn_top1: worse" in page
    assert re.search(r"feral promote \S+/candidates/0003-\S+ --force", page)
    assert "2 promoted, 1 held, 1 not used" in page
    assert "is not whole yet" in page
    assert "<b>/" not in page


def test_the_page_draws_each_candidate_beside_the_champion_of_then(page) -> None:
    for text in ("dump 2, promoted: 44.0 %", "champion, on the images of dump 2: 40.0 %", "dump 3, held: 31.0 %"):
        assert text in page
    assert "dump 1, promoted" not in page  # nothing was judged of it


def test_a_cycle_without_dumps_has_a_page(tmp_path) -> None:
    opened = Ledger.open(str(tmp_path / "ledger.db"), create=True)
    page = write_cycle_page(tmp_path, opened, ["web"], "champion", Path("production.toml"))
    assert "No dump has come yet." in page.read_text()
