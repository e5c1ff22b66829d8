"""Deliveries, dumps and work: nothing is done twice, nothing stale is published (P17), on SQLite and on PostgreSQL."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from pipeline.ledger import dumps
from pipeline.ledger.database import Ledger
from pipeline.ledger.dumps import Moved, discover, gaps, move, seal, unsealed
from pipeline.ledger.tables import dump
from pipeline.ledger.tables import work as work_table
from pipeline.ledger.work import (
    SUPERSEDED,
    Lease,
    LeaseLost,
    add_work,
    claim,
    give_up,
    heartbeat,
    make_ready,
    publish,
    supersede,
)

ROOT = Path(__file__).parent.parent.parent.parent


def sealed(ledger: Ledger, name: str, seq: int | None = None, source: str | None = "web") -> str:
    """A sealed dump of that name."""
    with ledger.writing() as connection:
        if source:
            dumps.add_source(connection, source, "s3://bucket")
        discover(connection, source, f"s3://bucket/{name}", "listing")
        return seal(connection, f"s3://bucket/{name}", "listing", f"dump-{name}", files=3, size=300, seq=seq).dump_id


def unit(ledger: Ledger, dump_id: str, stage: str = "curate", digest: str = "c1") -> str:
    with ledger.writing() as connection:
        return add_work(connection, dump_id, stage, digest)


def take(ledger: Ledger, work_id: str, owner: str = "me", **options) -> Lease | None:
    with ledger.writing() as connection:
        return claim(connection, work_id, owner, **options)


def state(ledger: Ledger, work_id: str):
    with ledger.reading() as connection:
        return connection.execute(select(work_table).where(work_table.c.work_id == work_id)).one()


def dump_state(ledger: Ledger, dump_id: str) -> str:
    with ledger.reading() as connection:
        return connection.execute(select(dump.c.state).where(dump.c.dump_id == dump_id)).scalar_one()


def test_a_quiet_period_begins_anew_with_every_change_of_the_listing(ledger):
    with ledger.writing() as connection:
        dumps.add_source(connection, "web", "s3://bucket")
        assert discover(connection, "web", "s3://bucket/a", "one") == 0
    time.sleep(0.05)
    with ledger.writing() as connection:
        assert 0.05 <= discover(connection, "web", "s3://bucket/a", "one") < 30
        assert discover(connection, "web", "s3://bucket/a", "two") == 0
        assert [(row.uri, row.listing) for row in unsealed(connection)] == [("s3://bucket/a", "two")]
        with pytest.raises(ValueError, match="changed meanwhile"):
            seal(connection, "s3://bucket/a", "one", "d", files=1, size=1)


def test_the_same_bytes_elsewhere_are_the_same_dump(ledger):
    first = sealed(ledger, "a")
    with ledger.writing() as connection:
        discover(connection, "web", "s3://bucket/copy", "other")
        again = seal(connection, "s3://bucket/copy", "other", first, files=3, size=300)
        assert not again.is_new
        assert again.admit_no == 1
        assert unsealed(connection) == []
        assert len(connection.execute(select(dump)).all()) == 1


def test_dumps_are_numbered_in_their_source_and_over_all(ledger):
    sealed(ledger, "x", source="other")
    sealed(ledger, "a")
    sealed(ledger, "e", seq=5)
    sealed(ledger, "f")
    with ledger.reading() as connection:
        rows = connection.execute(select(dump.c.source_id, dump.c.seq, dump.c.admit_no).order_by(dump.c.admit_no))
        assert [tuple(row) for row in rows] == [("other", 1, 1), ("web", 1, 2), ("web", 5, 3), ("web", 6, 4)]
        assert gaps(connection, "web") == (1, [2, 3, 4])
        assert gaps(connection, "none") == (None, [])
    with pytest.raises(ValueError, match="number 5 of source web is dump dump-e already"):
        sealed(ledger, "g", seq=5)


def test_a_dump_is_moved_only_from_the_state_that_it_is_in(ledger):
    one = sealed(ledger, "a")
    with ledger.writing() as connection:
        move(connection, one, "sealed", "verified")
    with pytest.raises(Moved, match="is verified, not sealed"), ledger.writing() as connection:
        move(connection, one, "sealed", "curated")
    assert dump_state(ledger, one) == "verified"


def test_a_unit_is_claimed_once_and_done_once(ledger):
    one = unit(ledger, sealed(ledger, "a"))
    assert unit(ledger, "dump-a") == one  # the same dump, stage and configuration
    assert unit(ledger, "dump-a", digest="c2") != one
    lease = take(ledger, one)
    assert lease == Lease(one, fence=1, attempt=1)
    assert take(ledger, one, "other") is None
    with ledger.writing() as connection:
        heartbeat(connection, lease)
        publish(connection, lease, "output")
        move(connection, "dump-a", "sealed", "curated")
    assert (state(ledger, one).state, state(ledger, one).output) == ("done", "output")
    assert take(ledger, one) is None
    assert unit(ledger, "dump-a") == one
    assert state(ledger, one).state == "done"


def test_a_waiting_unit_is_not_claimed_before_it_is_made_ready(ledger):
    sealed(ledger, "a")
    with ledger.writing() as connection:
        one = add_work(connection, "dump-a", "train", "c", ready=False)
        assert claim(connection, one, "me") is None
        make_ready(connection, one)
        assert claim(connection, one, "me") is not None


def test_a_configuration_that_comes_back_is_asked_for_again(ledger):
    """As when somebody edits a setting, and edits it back; or a name is rolled back."""
    one = unit(ledger, sealed(ledger, "a"))
    other = unit(ledger, "dump-a", digest="c2")
    for now, then in ((other, one), (one, other)):
        with ledger.writing() as connection:
            supersede(connection, now)
            make_ready(connection, now)
        assert (state(ledger, now).state, state(ledger, now).output) == ("ready", None)
        assert (state(ledger, then).state, state(ledger, then).output) == ("failed", SUPERSEDED)
    assert take(ledger, one) is not None


def test_whoever_was_overtaken_can_do_nothing_more(ledger):
    one = unit(ledger, sealed(ledger, "a"))
    stale = take(ledger, one, "slow", lease_seconds=-1)
    fresh = take(ledger, one, "fast")
    assert fresh == Lease(one, fence=2, attempt=2)

    def publish_and_move(connection):
        move(connection, "dump-a", "sealed", "curated")  # before the fence is looked at: undone with the rest
        publish(connection, stale, "stale")

    for deed in (lambda c: heartbeat(c, stale), publish_and_move, lambda c: give_up(c, stale, "why")):
        with pytest.raises(LeaseLost), ledger.writing() as connection:
            deed(connection)
    assert dump_state(ledger, "dump-a") == "sealed"
    assert state(ledger, one).owner == "fast"
    with ledger.writing() as connection:
        publish(connection, fresh, "fresh")
    assert state(ledger, one).output == "fresh"
    with pytest.raises(LeaseLost), ledger.writing() as connection:
        publish(connection, fresh, "twice")


def test_a_lease_that_ran_out_unnoticed_is_still_good(ledger):
    one = unit(ledger, sealed(ledger, "a"))
    lease = take(ledger, one, lease_seconds=-1)
    with ledger.writing() as connection:
        heartbeat(connection, lease)
        assert claim(connection, one, "other") is None
        publish(connection, lease, "output")


@pytest.mark.parametrize("dies", [True, False], ids=["without a word", "with a reason"])
def test_a_unit_fails_after_so_many_attempts_and_its_dump_is_quarantined(ledger, dies):
    one = unit(ledger, sealed(ledger, "a"))
    for attempt in (1, 2):
        lease = take(ledger, one, lease_seconds=-1, max_attempts=2)
        assert lease is not None
        assert lease.attempt == attempt
        if not dies:
            with ledger.writing() as connection:
                give_up(connection, lease, "the disk is full", max_attempts=2)
    assert take(ledger, one, max_attempts=2) is None
    assert state(ledger, one).state == "failed"
    assert ("without a word" if dies else "the disk is full") in state(ledger, one).output
    assert dump_state(ledger, "dump-a") == "quarantined"


def _python(code: str, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


RACE = """
import random, sys, time
from pipeline.ledger.database import Ledger
from pipeline.ledger.work import claim
where, owner, start, *units = sys.argv[1:]
ledger = Ledger.open(where)
random.Random(owner).shuffle(units)
time.sleep(max(0, float(start) - time.time()))
for one in units:
    with ledger.writing() as connection:
        if claim(connection, one, owner):
            print(one, flush=True)
"""


def test_two_schedulers_that_race_do_every_unit_exactly_once(ledger, where):
    units = [unit(ledger, sealed(ledger, f"d{number}")) for number in range(25)]
    start = str(time.time() + 2)
    racers = [_python(RACE, where, f"racer {number}", start, *units) for number in range(2)]
    won = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sorted(won[0] + won[1]) == sorted(units)
    assert {state(ledger, one).fence for one in units} == {1}


OWNER = """
import os, signal, sys
from pipeline.ledger.database import Ledger
from pipeline.ledger.dumps import move
from pipeline.ledger.work import LeaseLost, claim, publish
where, one = sys.argv[1:]
ledger = Ledger.open(where)
with ledger.writing() as connection:
    lease = claim(connection, one, "paused", lease_seconds=0.2)
print("claimed", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
try:
    with ledger.writing() as connection:
        move(connection, "dump-a", "sealed", "trained")
        publish(connection, lease, "of the dead")
except LeaseLost as lost:
    print(lost)
"""


def test_an_owner_that_was_stopped_beyond_its_lease_publishes_nothing(ledger, where):
    one = unit(ledger, sealed(ledger, "a"), "train")
    owner = _python(OWNER, where, one)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "claimed\n"
        time.sleep(0.4)
        lease = take(ledger, one, "next")
        assert lease is not None
        assert lease.fence == 2
        owner.send_signal(signal.SIGCONT)
        assert "no longer held with fence 1" in owner.communicate(timeout=60)[0]
    finally:
        owner.kill()
    assert dump_state(ledger, "dump-a") == "sealed"
    with ledger.writing() as connection:
        publish(connection, lease, "of the living")
    assert state(ledger, one).output == "of the living"


def test_the_next_scheduler_goes_on_where_one_was_killed(ledger, where):
    """P15: nothing but the ledger is needed."""
    order = [unit(ledger, sealed(ledger, name)) for name in "ab"]
    code = RACE.replace("claim(connection, one, owner)", "claim(connection, one, owner, 0.2)").replace(
        "print(one, flush=True)", "print(one, flush=True); connection.commit(); import os; os.kill(os.getpid(), 9)"
    )
    killed = _python(code, where, str(random.random()), "0", *order)
    begun = killed.communicate(timeout=60)[0].strip()
    assert killed.returncode == -9
    time.sleep(0.3)
    assert take(ledger, begun).attempt == 2
    assert take(ledger, next(one for one in order if one != begun)).attempt == 1
