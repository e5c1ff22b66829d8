"""The first stage alone, on real pictures and without Ray."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

from pipeline.cycle.job import Step
from pipeline.ingest.store import Store
from pipeline.ledger.records import record_store
from pipeline.ledger.resolutions import retry
from pipeline.ledger.tables import delivery, dump
from pipeline.stream.batches import named_store
from tests.pipeline.cycle.test_stages import Production, whole, without_ray
from tests.pipeline.stores import curate_here, write_dump


@pytest.fixture
def production(tmp_path, monkeypatch) -> Production:
    without_ray(monkeypatch)
    return Production(tmp_path)


def curated(production: Production, folder: Path) -> Step:
    whole(folder)
    (step,) = production.tick("curate").steps
    return step


def test_a_suspicious_dump_that_a_person_lets_go_on_keeps_to_the_quota_of_its_source(production):
    curated(production, write_dump(production.root / "incoming" / "a", 60))
    flood = write_dump(production.root / "other" / "b", 60, 25)
    for number in range(30):
        Image.fromarray(np.full((30, 30, 3), (200, 10, 10), np.uint8)).save(flood / f"{number}.bmp")
    assert curated(production, flood).kind == "quarantined"
    with production.ledger.writing() as connection:
        assert retry(connection, "2", actor="me", reason="these are fine")[1] == "curated"
    own, others = (
        named_store(production.output(production.dumps()[name], "curate")).count("train") for name in ("b", "a")
    )
    assert own == others // 4  # a fifth of all


def test_of_a_delivery_all_that_was_seen_is_kept_or_refused(production):
    folder = write_dump(production.root / "incoming" / "a", 60)
    (folder / "link.png").symlink_to("/etc/passwd")
    facts = curated(production, folder).facts
    assert (facts["seen"], facts["kept"], facts["refused"]) == (61, 60, {"key_invalid": 1})


@pytest.mark.parametrize("seen", [True, False], ids=["while it was not whole", "before any tick"])
def test_what_was_curated_by_hand_enters_the_cycle_like_anything_else(production, tmp_path, seen):
    """As when somebody tries a dump, and promotes what came of it, before there is a cycle."""
    folder = write_dump(production.root / "incoming" / "a", 60)
    if seen:
        production.tick("curate")
    else:
        whole(folder)
    by_hand = curate_here(folder, tmp_path / "by hand")
    with production.ledger.writing() as connection:
        record_store(connection, by_hand)
        if not seen:  # as an older version noted it
            connection.execute(delivery.update().values(listing=by_hand.manifest.listing))
    if seen:
        whole(folder)
    assert [step.kind for step in production.tick("curate").steps] == ["done"]
    with production.ledger.writing() as connection:
        record_store(connection, by_hand)
        rows = connection.execute(select(dump.c.source_id, dump.c.state).order_by(dump.c.admit_no)).all()
    assert [tuple(row) for row in rows] == [(None, "curated"), ("web", "curated")]
    write_dump(folder / "late", 30, 25)
    assert [step.kind for step in production.tick("curate").steps] == ["done"]


def test_a_picture_that_is_listed_later_is_blocked_in_stores_that_were_sealed_before(production):
    """Else a takedown would not reach what is replayed."""
    curated(production, write_dump(production.root / "incoming" / "a", 60))
    store = Store(production.output(production.dumps()["a"], "curate"))
    file, number = production.root / "blocked.txt", int(store.select("train")[0])
    web, other = production.cycle.sources
    production.cycle = production.cycle.model_copy(
        update={"sources": (web.model_copy(update={"block_list": file}), other), "images_per_dump": 32}
    )
    file.write_text("no hash")
    (step,) = production.tick("train").steps
    assert (step.kind, "is no hash" in step.said) == ("error", True)
    file.write_text(store.column("id")[number].as_py())
    (step,) = production.tick("train").steps
    assert step.kind == "done"
    assert store.blocked.tolist() == [number]
