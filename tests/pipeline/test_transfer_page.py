"""The page of encoders on stores: whole in itself, and says no more than the evaluations hold."""

from dataclasses import replace
from html import unescape
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from pipeline.evaluate.foreign import ForeignEncoders
from pipeline.evaluate.protocol import Evaluation, EvaluationConfig, Score
from pipeline.evaluate.transfer import Judged, judge_all
from pipeline.report.encoder_page import write_encoder_page
from pipeline.report.transfer_page import write_transfer_page
from tests.pipeline.embedding import HERE, embed_here
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
    assert not any(link.endswith("--cifar.html") for link in page.links)  # there are no pages yet
    for one in found:
        write_encoder_page(one, "feral evaluate")
    page = Page(write_transfer_page(tmp_path, found, "feral evaluate").read_text())
    assert {"o--cifar.html", "t--pets.html"} <= {*page.links}


def test_one_encoder_on_one_store_needs_no_overview(tmp_path: Path) -> None:
    page = Page(write_transfer_page(tmp_path, [judged(tmp_path, "ours", "cifar", 0.6)], "feral evaluate").read_text())
    assert "cifar, k-NN: ours has 60.0 %." in page.text
    assert "matrix" not in page.ids
    empty = Page(write_transfer_page(tmp_path, [judged(tmp_path, "ours", "cifar")], "feral evaluate").read_text())
    assert "No score could be computed on this store." in empty.text


def test_an_encoder_has_a_page_of_its_own_on_each_store(small_store, tmp_path: Path, monkeypatch) -> None:
    """Of another's encoder: scores with baselines, health, neighbours, map; without its store, what is left."""
    embed_here(monkeypatch)
    encoders = ForeignEncoders("timm", "test_resnet", _weights(tmp_path))
    (found,) = judge_all([encoders], [small_store], tmp_path / "out", EvaluationConfig(), HERE)
    page = Page(write_encoder_page(found, f"feral evaluate {ATTACK}").read_text())
    refuse_network(page)
    assert ATTACK not in page.text
    assert page.ids == ["headline", "scores", "neighbours", "map", "confusion", "reproduce"]
    for score in found.evaluation.scores:
        assert score.protocol.split("≤")[0] in unescape(page.text)
    for words in (
        "How good is timm:test_resnet on store?",
        "Effective rank",
        "before training, test images: alignment",
    ):
        assert words in page.text, words
    assert "was told no class" not in page.text  # nobody knows
    assert "timm_test_resnet--store.json" in page.links
    gone = replace(found, place=tmp_path / "gone")
    page = Page(write_encoder_page(gone, "feral evaluate").read_text())
    assert page.text.count("Not shown:") == 2  # neighbours and map
    assert "k-NN" in page.text


def _weights(folder: Path) -> Path:
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"
