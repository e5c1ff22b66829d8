"""The page of encoders on stores: whole in itself, and says no more than the evaluations hold."""

from pathlib import Path

from pipeline.evaluate.protocol import Evaluation, Score
from pipeline.evaluate.transfer import Judged
from pipeline.report.transfer_page import write_transfer_page
from tests.pipeline.pages import ATTACK, Page, refuse_network


def judged(folder: Path, encoder: str, store: str, *trained: float, queries: int = 2000) -> Judged:
    scores = [
        Score(name=name, protocol=f"as {ATTACK}", num_queries=queries, trained=share, random_encoder=0.3,
              raw_pixels=0.4, chance=0.1)
        for name, share in zip(("knn_top1", "linear_top1"), trained, strict=False)
    ]  # fmt: skip
    evaluation = Evaluation(checkpoint=f"{encoder}@file", step=0, store_digest="d", encoder_digest="e" * 64,
                            scores=scores, skipped=["zero_shot_top1: no text"], neighbours={}, seconds=1)  # fmt: skip
    file = folder / f"{encoder[:1]}--{store}.json"
    file.write_text(evaluation.model_dump_json())
    return Judged(encoder, store, file, evaluation)


def test_who_leads_where_and_who_gained_nothing(tmp_path: Path) -> None:
    found = [
        judged(tmp_path, "ours", "cifar", 0.60, 0.62), judged(tmp_path, "theirs", "cifar", 0.59, 0.7),
        judged(tmp_path, f"weak {ATTACK}", "cifar", 0.31), judged(tmp_path, "ours", "pets", 0.35),
        judged(tmp_path, "theirs", "pets", 0.55),
    ]  # fmt: skip
    page = Page(write_transfer_page(tmp_path, found, f"feral evaluate {ATTACK}").read_text())
    refuse_network(page, scripts=1)
    assert ATTACK not in page.text
    assert page.ids == ["headline", "matrix", "store-1", "store-2", "protocol", "reproduce"]
    for words in ("cifar, k-NN: ours leads with 60.0 %; not distinguishable from it: theirs.",
                  "cifar: not better than untrained: weak", "cifar: not better than raw pixels: weak",
                  "pets, k-NN: theirs leads with 55.0 %.", "pets: not better than raw pixels: ours.",
                  "57.8 % to 62.1 %", "zero_shot_top1: no text"):  # fmt: skip
        assert words in page.text, words
    assert {"o--cifar.json", "t--pets.json"} <= {*page.links}


def test_one_encoder_on_one_store_needs_no_overview(tmp_path: Path) -> None:
    page = Page(write_transfer_page(tmp_path, [judged(tmp_path, "ours", "cifar", 0.6)], "feral evaluate").read_text())
    assert "cifar, k-NN: ours has 60.0 %." in page.text
    assert "matrix" not in page.ids
    empty = Page(write_transfer_page(tmp_path, [judged(tmp_path, "ours", "cifar")], "feral evaluate").read_text())
    assert "No score could be computed on this store." in empty.text
