"""The data card of a store: true to the manifest, whole, and deaf to what strangers wrote. No Ray."""

import base64
import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import time
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.ingest.blocklist import BlockList, block
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.index import mapped_columns
from pipeline.ingest.mapped import MappedWriter
from pipeline.ingest.measures import measure
from pipeline.ingest.refusals import REASONS
from pipeline.ingest.selection import read_selection
from pipeline.ingest.store import (
    CAPTIONS,
    FILES,
    FILES_SCHEMA,
    INDEX,
    INDEX_SCHEMA,
    MANIFEST,
    PLACES,
    REFUSED,
    REFUSED_SCHEMA,
    SHARDS,
    Damage,
    Manifest,
    SealedFile,
    Store,
    file_sha256,
)
from pipeline.ingest.write import ShardWriter, sealed_file, write_table
from pipeline.report import census
from pipeline.report.data_card import data_card, write_data_card
from pipeline.report.histograms import BINS, Quantity, drawing, histogram
from pipeline.report.reasons import MEANINGS, meaning
from pipeline.report.thumbnails import SIDE, thumbnails
from pipeline.report.verdict import share
from pipeline.select import selecting
from pipeline.select.blocks import EmbeddingBlocks
from pipeline.select.policy import PRESETS, Inputs, Policy
from pipeline.select.selecting import BalanceConfig, Stages, select, select_new
from tests.pipeline.stores import curate_here, write_dump

ATTACK = "<script>alert(1)</script>"
BIDI = "invoice\u202egnp.exe"
NAME = f"dir'\"><img src=x onerror=alert(2)>/{BIDI}"
SECRET = "write to someone@example.org about it"
POLICY = Policy(min_std=2, min_side=40, max_aspect=3, min_caption_words=2, languages=("en", "und"), drop_private=True)
REFUSALS = [
    (f"{NAME}.zip", "ext_forbidden", "no picture"),
    *((f"cut/{i}.jpg", "decode_failed", f"OSError: {ATTACK}") for i in range(9)),
    ("bomb.png", "pixels_over_cap", "19600×19600 pixels"),
]


def scene(seed: int, width: int = 120, height: int = 96) -> Image.Image:
    """Something like a photograph: a smooth background and some shapes."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y = random.integers(0, width), random.integers(0, height)
        draw.ellipse([x, y, x + width // 4, y + height // 4], fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


def encoded(image: Image.Image, quality: int = 90, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **more)
    return buffer.getvalue()


def pictures() -> list[dict[str, Any]]:
    """Each with its own way to be kept or dropped by `POLICY`."""
    good = [{"image": scene(i), "captions": [f"scene number {i}"], "origin": f"shard{i % 2}.tar"} for i in range(20)]
    copies = [{"image": scene(0), "captions": ["the first again"], "origin": "copies"} for _ in range(12)]
    near = [{"image": scene(1), "quality": 60, "captions": [ATTACK + " x"], "source": NAME, "origin": NAME}]
    return [
        *good,
        *copies,
        *near,
        {"image": Image.new("RGB", (64, 64), "white"), "captions": ["a blank"]},
        {"image": scene(50, 32, 32), "captions": ["too small"]},
        {"image": scene(51, 400, 60), "captions": ["far too long"]},
        {"image": scene(52), "captions": ["short"]},
        {"image": scene(53), "captions": [SECRET]},
        {"image": scene(54), "captions": []},
        {"image": scene(55), "captions": ["a blocked one"], "blocked": True},
        {"image": scene(56), "captions": ["shared by two"]},
        {"image": scene(57), "captions": ["shared by two"], "format": "PNG", "flags": ["alpha", "rotated"]},
    ]


def make_store(
    path: Path, samples: list[dict[str, Any]], policy: Policy, *, in_place: bool = False, refusals: Any = REFUSALS,
    damaged: tuple[Damage, ...] = (), declared: int | None = None, lost: int = 0,
) -> Store:  # fmt: skip
    """A sealed store as curation would leave it."""
    (path / SHARDS).mkdir(parents=True)
    source = path.with_name(f"{path.name} source")
    rows, blocked = [], []
    with ShardWriter(path, 0, 1000) as shards:
        for number, sample in enumerate(samples):
            image = sample["image"]
            raw = encoded(image, sample.get("quality", 90), exif=sample.get("exif", b""))
            if in_place:
                source.mkdir(exist_ok=True)
                (source / f"{number}.jpg").write_bytes(raw)
            offset = 0 if in_place else shards.add(number, raw, sample["captions"], {})[1]
            rgb = Image.open(io.BytesIO(raw)).convert("RGB")
            row = {
                "number": number, "id": hashlib.sha256(raw).hexdigest(), "shard": number if in_place else 0,
                "offset": offset, "length": len(raw), "checksum": zlib.crc32(raw),
                "width": image.width, "height": image.height, "captions": sample["captions"],
                "label": sample.get("label", number % 3 - 1),
                "split": "test" if number % 5 == 4 else "train", "pixels": hashlib.sha256(rgb.tobytes()).hexdigest(),
                "source": sample.get("source", f"shard.tar#{number:05d}"), "original_width": image.width,
                "original_height": image.height, "bytes": len(raw), "format": sample.get("format", "JPEG"),
                "flags": sample.get("flags", []), "languages": ["en"] * len(sample["captions"]),
                "origin": sample.get("origin", "odd"), **vars(measure(rgb)),
            }  # fmt: skip
            blocked += [row["id"]] if sample.get("blocked") else []
            rows.append(row)
        shards.close()
    files = write_index(path, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), in_place)
    refused = [dict(zip(REFUSED_SCHEMA.names, row, strict=True)) for row in refusals]
    write_table(pa.Table.from_pylist(refused, schema=REFUSED_SCHEMA), path / REFUSED)
    if in_place:
        with MappedWriter(path / FILES, FILES_SCHEMA, path) as paths:
            paths.add(pa.record_batch({"path": [f"{i}.jpg" for i in range(len(rows))]}))
    inputs = Inputs(block_list=BlockList(frozenset(blocked)))
    selection = select_new(path, policy, inputs)
    counts = dict(selection.dropped)
    for _, reason, _ in refusals:
        counts[reason] = counts.get(reason, 0) + 1
    manifest = Manifest(
        source=str(source), in_place=in_place, listing="0" * 64, declared=declared, seen=len(rows) + len(refused),
        lost=lost, admitted=len(rows), kept=selection.kept, refused=dict(sorted(counts.items())), captioned=0,
        captions_dropped=2, classes=("cat", f'dog"{ATTACK}'), splits=selection.splits, shards=tuple(shards.shards),
        damaged=damaged, config=CurateConfig(in_place=in_place, side=96).model_dump() | {"decoder": {"pillow": "1"}},
        policy=policy.model_dump(mode="json"), inputs=inputs.digests, digest="1" * 64, selection=selection.digest,
        index_sha256=files[0].sha256, files=files, seconds={"list": 0.0, "read and decode": 2.5, "tasks: decode": 4.0},
        created="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    (path / MANIFEST).write_text(manifest.model_dump_json())
    return Store(path)


def write_index(path: Path, index: pa.Table, in_place: bool) -> tuple[SealedFile, ...]:
    write_table(index, path / INDEX)
    with mapped_columns(path, path, in_place=in_place) as mapped:
        for batch in index.to_batches():
            mapped(batch)
    return tuple(sealed_file(path / name) for name in (INDEX, PLACES, CAPTIONS))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    damaged = (
        Damage(shard=f"{NAME}.tar", reason="tar_truncated", saved=12, lost=7, why=f"ends at byte 512 {ATTACK}"),
        Damage(shard="b.tar", reason="tar_trailing", saved=3, why="foreign bytes"),
    )
    return make_store(tmp_path_factory.mktemp("stores") / "odd & ends", pictures(), POLICY, damaged=damaged,
                      declared=len(pictures()) + len(REFUSALS) + 7, lost=7)  # fmt: skip


@pytest.fixture(scope="module")
def card(store: Store) -> dict[str, Any]:
    return data_card(store)


@pytest.fixture(scope="module")
def page(store: Store) -> str:
    return write_data_card(store).read_text()


class Tags(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def shown_pictures(page: str) -> list[bytes]:
    return [base64.b64decode(found) for found in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)]


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_manifest(store: Store, card: dict[str, Any]) -> None:
    manifest, counts = store.manifest, card["counts"]
    for name in ("declared", "lost", "seen", "admitted", "kept"):
        assert counts[name] == getattr(manifest, name)
    reasons: dict[str, int] = {}
    for row in card["reasons"]:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["count"]
    assert reasons == manifest.refused
    assert counts["seen"] == counts["kept"] + sum(reasons.values())
    for text in (f"{manifest.kept:,} of {manifest.seen:,}", manifest.digest, manifest.selection, manifest.index_sha256):
        assert text in write_data_card(store).read_text()


def test_the_funnel_ends_at_what_is_kept_and_each_stage_takes_what_it_says(card: dict[str, Any]) -> None:
    left = card["funnel"][0]["left"]
    assert left == card["counts"]["declared"]
    for stage in card["funnel"]:
        left -= sum(stage["taken"].values())
        assert stage["left"] == left
    assert left == card["counts"]["kept"]
    titles = [stage["title"] for stage in card["funnel"]]
    assert titles == [
        "declared", "seen", "readable", "decoded", "not blocked", "good pictures", "good captions", "no exact copies",
        "no near copies", "kept",
    ]  # fmt: skip
    taken = {name for stage in card["funnel"] for name in stage["taken"]}
    assert taken == {row["reason"] for row in card["reasons"]} | {"lost"}


def test_the_data_beside_the_page_are_the_same_and_plain_ascii(store: Store, card: dict[str, Any]) -> None:
    file = write_data_card(store).with_suffix(".json")
    assert json.loads(file.read_bytes()) == card
    assert file.read_bytes().isascii()


def test_two_cards_of_one_selection_are_equal(store: Store, page: str) -> None:
    assert write_data_card(store).read_text() == page


def test_another_selection_has_its_own_card(store: Store) -> None:
    before = (store.path / "data_card.html").read_text() if (store.path / "data_card.html").exists() else None
    selection, _ = select(store, "all", PRESETS["none"][0], Inputs(), Stages())
    written = write_data_card(store, "all")
    assert written == store.path / "selections" / "all" / "data_card.html"
    card = json.loads(written.with_suffix(".json").read_bytes())
    assert card["counts"]["kept"] == selection.kept == store.manifest.admitted
    assert card["selection"]["policy"] == "none"
    assert card["clusters"]["largest"] == []
    assert "No sample is a copy" in written.read_text()
    if before is not None:
        assert (store.path / "data_card.html").read_text() == before


# ---- reasons and copies --------------------------------------------------------------------------------------------


def test_every_reason_has_words_for_each_stage_it_can_come_from() -> None:
    assert {reason for words in MEANINGS.values() for reason in words} == set(REASONS)
    policy, config = Policy(languages=("en", "de")).model_dump(mode="json"), CurateConfig().model_dump()
    for stage, words in MEANINGS.items():
        for reason in words:
            text = meaning(stage, reason, policy if stage == "policy" else config)
            assert text
            assert "{" not in text
    assert "en, de" in meaning("policy", "caption_language", policy)
    assert "50,000,000" in meaning("decode", "pixels_over_cap", config)


def test_thresholds_stand_in_the_reasons(card: dict[str, Any]) -> None:
    meanings = {(row["stage"], row["reason"]): row["meaning"] for row in card["reasons"]}
    assert "40 pixels" in meanings["policy", "side_under_min"]
    assert "3.0 ×" in meanings["policy", "aspect_over_max"]


def test_examples_are_the_first_of_their_reason(store: Store, card: dict[str, Any]) -> None:
    reasons = {row["reason"]: row for row in card["reasons"]}
    assert [example["source"] for example in reasons["decode_failed"]["examples"]] == [f"cut/{i}.jpg" for i in range(6)]
    copies = reasons["dup_exact"]["examples"] + reasons["dup_near"]["examples"]
    assert copies == [{"number": 0, "because": 24}, {"number": 32, "because": 1}]  # the first of each group
    ids = {sample["number"]: sample["id"] for sample in card["samples"]}
    assert ids[0] == ids[24]  # a test sample survives before a training sample


def test_copies_are_grouped_with_the_one_that_stands_for_them(card: dict[str, Any]) -> None:
    largest = card["clusters"]["largest"][0]
    assert largest["size"] == 13
    assert largest["reasons"] == {"dup_exact": 12}
    assert len(largest["members"]) == census.MEMBERS
    assert largest["survivor"] not in largest["members"]
    assert card["clusters"]["copies"] == 13


def test_a_copy_of_a_copy_belongs_to_the_last_survivor() -> None:
    """3 → 2 → 1 → 0, and 0 was dropped afterwards."""
    decisions = pa.table(
        {
            "reason": ["over_quota", "dup_near", "dup_exact", "dup_exact", None],
            "because": pa.array([None, 0, 1, 2, None], pa.int64()),
        }
    )
    assert census.clusters(decisions)["largest"] == [
        {
            "survivor": 0,
            "dropped_too": "over_quota",
            "size": 4,
            "reasons": {"dup_exact": 2, "dup_near": 1},
            "members": [1, 2, 3],
        }
    ]


# ---- safety --------------------------------------------------------------------------------------------------------


def test_the_page_runs_nothing_and_loads_nothing(page: str) -> None:
    parsed = Tags(page)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    loaded = [value for name, value in parsed.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert loaded
    assert all(value.startswith(("data:", "#")) for value in loaded)
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*https?:", page)


def test_hostile_names_and_captions_are_shown_as_text(page: str) -> None:
    assert ATTACK not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\u202e" not in page
    assert r"invoice\u202egnp" in page


def test_what_is_blocked_is_never_shown_and_private_captions_neither(store: Store, page: str, tmp_path: Path) -> None:
    card = data_card(store)
    number = next(r for r in card["reasons"] if r["reason"] == "blocklisted")["examples"][0]["number"]
    assert "never shown" in page
    for text in (SECRET, "a blocked one"):
        assert text not in page
        assert text not in json.dumps(card)
    blocked = next(sample for sample in card["samples"] if sample["number"] == number)
    assert not blocked["shown"]
    assert blocked["caption"] is None


def test_what_was_blocked_after_the_selection_is_not_shown_either(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", pictures(), POLICY)
    before = len(shown_pictures(write_data_card(store).read_text()))
    copies = 11  # a pair as an example; in the group the survivor and eight copies
    first = store.index["id"][0].as_py()  # stands for twelve copies
    block(store.path, BlockList(frozenset([first])))
    after = write_data_card(store).read_text()
    assert len(shown_pictures(after)) == before - copies
    card = data_card(store)
    assert card["counts"]["blocked_since"] == 1
    assert any("block-list by now" in concern for concern in card["verdict"]["concerns"])


@pytest.mark.parametrize("in_place", [False, True])
def test_thumbnails_are_small_and_bare(tmp_path: Path, in_place: bool) -> None:
    """The stored files hold a place where they were taken; in place they are foreign bytes."""
    exif = Image.Exif()
    exif[0x010E] = "GPS of my house"
    samples = [{**sample, "exif": exif.tobytes()} for sample in pictures()]
    store = make_store(tmp_path / "store", samples, POLICY, in_place=in_place)
    found = shown_pictures(write_data_card(store).read_text())
    assert len(found) == 20
    for jpeg in found:
        image = Image.open(io.BytesIO(jpeg))
        assert max(image.size) <= SIDE
        assert b"Exif" not in jpeg
        assert b"house" not in jpeg


def test_in_place_a_file_that_changed_or_went_is_left_out(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", pictures(), POLICY, in_place=True)
    before = len(shown_pictures(write_data_card(store).read_text()))
    source = Path(store.manifest.source)
    content = (source / "33.jpg").read_bytes()  # the blank one
    (source / "33.jpg").write_bytes(content[:-3] + b"abc")
    (source / "34.jpg").unlink()
    after = write_data_card(store).read_text()
    assert len(shown_pictures(after)) == before - 2
    assert "the file cannot be read" in after


def test_a_page_stays_within_its_size(tmp_path: Path) -> None:
    """300 noisy pictures in 30 groups, with long names."""
    random = np.random.default_rng(0)
    noise = [Image.fromarray(random.integers(0, 256, (96, 96, 3), dtype=np.uint8)) for _ in range(30)]
    samples = [
        {"image": noise[i % 30], "quality": 95, "captions": ["x" * 8000], "source": f"{i}" * 200} for i in range(300)
    ]
    damaged = tuple(Damage(shard=f"{i}.tar", reason="tar_truncated", saved=i, why="y" * 5000) for i in range(3000))
    store = make_store(tmp_path / "store", samples, Policy(), damaged=damaged)
    page = write_data_card(store)
    assert page.stat().st_size < 3_000_000
    assert "and 2,900 more, in manifest.json" in page.read_text()
    wanted = [(number, store.index["id"][number].as_py()) for number in (0, 1, 2, 2, 2)]
    whole = thumbnails(store, wanted)
    assert list(whole) == [0, 1, 2]
    enough = sum(len(whole[number]) for number, _ in wanted)
    assert list(thumbnails(store, wanted, enough)) == [0, 1, 2]
    assert list(thumbnails(store, wanted, enough - 1)) == [0, 1]  # the third is shown three times


# ---- verdict, distributions ----------------------------------------------------------------------------------------


def test_the_verdict_tells_good_from_bad(tmp_path: Path, card: dict[str, Any]) -> None:
    good = [{"image": scene(i), "captions": []} for i in range(10)]
    clean = data_card(make_store(tmp_path / "good", good, Policy(), refusals=[], declared=10))
    assert clean["verdict"] == {
        "tone": "good",
        "title": "Ready to train: 10 of 10 samples kept (100.0 %), none lost.",
        "concerns": [],
    }
    assert card["verdict"]["tone"] == "bad"  # 7 of 61 are lost
    assert any("7 samples" in concern for concern in card["verdict"]["concerns"])
    few = data_card(make_store(tmp_path / "few", good, Policy(), refusals=[], declared=11, lost=1))
    assert few["verdict"]["tone"] == "bad"
    none = data_card(make_store(tmp_path / "none", good, Policy(min_side=1000), refusals=[]))
    assert none["verdict"]["concerns"][0] == "No training picture is left."
    assert "none known to be lost" in none["verdict"]["title"]


def test_shares_are_never_rounded_to_all_or_nothing() -> None:
    assert [share(value) for value in (0, 1e-6, 0.5, 1 - 1e-6, 1)] == [
        "0.0 %",
        "< 0.1 %",
        "50.0 %",
        "> 99.9 %",
        "100.0 %",
    ]


def test_histograms_count_every_sample_once(card: dict[str, Any]) -> None:
    for one in card["histograms"]:
        if one["name"] != "caption_words":
            assert sum(one["kept"]) == card["counts"]["kept"], one["name"]
            assert sum(one["dropped"]) == card["counts"]["admitted"] - card["counts"]["kept"], one["name"]
    labels = {one["name"]: [line["label"] for line in one["thresholds"]] for one in card["histograms"]}
    assert labels["side"] == ["≥ 40"]
    assert labels["aspect"] == ["≤ 3"]
    assert labels["entropy"] == []


@pytest.mark.parametrize(
    "values", [[], [7.0], [3.0] * 50, [1.0, 2.0, 3.0], [0.0, 1e6], [1, 1e12, np.nan, np.inf]], ids=str
)
@pytest.mark.parametrize("quantity", [Quantity("a", "A"), Quantity("b", "B", whole=True), Quantity("c", "C", low=0.1),
                                      Quantity("d", "D", log=False, low=0, high=8)])  # fmt: skip
def test_any_values_can_be_drawn(quantity: Quantity, values: list[float]) -> None:
    array = np.array(values)
    kept = np.arange(len(array)) % 2 == 0
    data = histogram(quantity, array, kept, [("≥ 5", 5)])
    assert sum(data["kept"]) + sum(data["dropped"]) == np.isfinite(array).sum()
    assert np.all(np.diff(data["edges"]) > 0)
    plot = drawing(data)
    places = [float(number) for points in (plot.kept, plot.dropped) for number in re.findall(r"[-\d.]+", points)]
    places += [place for place, _ in (*plot.ticks, *plot.lines)]
    assert all(-0.01 <= place <= 100.01 for place in places)
    assert len({label for _, label in plot.ticks}) == len(plot.ticks)


def test_whole_numbers_leave_no_empty_bin_between_neighbours() -> None:
    values = np.arange(1, 40)
    data = histogram(Quantity("words", "Words", whole=True), values, np.ones(39, bool))
    assert len(data["kept"]) < BINS
    assert min(data["kept"]) >= 1


def test_categories_add_up(card: dict[str, Any], store: Store) -> None:
    parts = {part["name"]: part["rows"] for part in card["categories"]}
    for name in ("formats", "captions", "labels"):
        assert sum(row["kept"] for row in parts[name]) == store.manifest.kept
        assert sum(row["dropped"] for row in parts[name]) == store.manifest.admitted - store.manifest.kept
    assert {row["value"] for row in parts["labels"]} == {"none", *store.manifest.classes}
    assert parts["flags"] == [{"value": name, "kept": 1, "dropped": 0} for name in ("alpha", "rotated")]
    assert {"caption": "shared by two", "samples": 2, "kept": 2} in card["captions"]["repeated"]


def test_settings_say_what_was_changed_and_how_to_select_again(card: dict[str, Any], store: Store) -> None:
    changed = {f"{row['group']}.{row['name']}" for row in card["settings"] if row["changed"]}
    assert changed == {"curation.side", "policy.min_side", "policy.max_aspect", "policy.min_caption_words",
                       "policy.languages", "policy.drop_private"}  # fmt: skip
    assert all(row["meaning"] for row in card["settings"])
    assert "min_side=40" in card["commands"]["again"]
    assert f"'{store.path}'" in card["commands"]["again"]  # it has a space
    assert all("--block-list" in command for command in card["commands"].values())


def test_the_command_makes_the_same_selection_again(tmp_path: Path) -> None:
    """From a policy of its own, a block-list, and another selection that balances captions."""
    store = make_store(tmp_path / "a store", pictures(), POLICY)
    block(store.path, BlockList(frozenset(row for row in store.index["id"].to_pylist()[39:40])))
    (tmp_path / "my words.txt").write_text("scene\nnumber")
    stages = Stages.model_validate({"concepts": {"cap": 5, "path": str(tmp_path / "my words.txt")}})
    narrow, _ = select(store, "narrow", Policy(min_side=90, languages=("en",)), Inputs(), stages, based_on="default")
    for name, digest in (("default", store.manifest.selection), ("narrow", narrow.digest)):
        arguments = shlex.split(data_card(store, name)["commands"]["again"])[1:]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert read_selection(store, f"{name}_again").digest == digest
    card = data_card(store, "narrow")
    page = write_data_card(store, "narrow").read_text()
    assert {"stages.concepts.cap", "stages.encoder"} <= {f"{row['group']}.{row['name']}" for row in card["settings"]}
    assert card["funnel"][-2]["title"] == "drawn"
    assert "What the stages say" in page
    assert re.search(r"scene \(count \d+", page)
    assert card["selection"]["based_on"] == store.manifest.selection


# ---- scale and looks -----------------------------------------------------------------------------------------------


def test_a_large_index_takes_seconds(tmp_path: Path) -> None:
    """100,000 rows, by repeating those of a small store."""
    small = make_store(tmp_path / "small", pictures(), POLICY)
    rows = np.resize(np.arange(small.manifest.admitted), 100_000)
    index = small.index.take(pa.array(rows))
    path = tmp_path / "large"
    shutil.copytree(small.path, path)
    files = write_index(path, index, in_place=False)
    selection = select_new(path, Policy(near_distance=None), Inputs())
    manifest = small.manifest.model_copy(
        update={
            "index_sha256": files[0].sha256,
            "files": files,
            "admitted": 100_000,
            "seen": 100_011,
            "kept": selection.kept,
        }
    )
    (path / MANIFEST).write_text(manifest.model_dump_json())
    began = time.perf_counter()
    card = data_card(Store(path))
    assert card["counts"]["kept"] == read_selection(Store(path), "default").kept
    assert time.perf_counter() - began < 20
    assert pq.read_metadata(path / INDEX).num_rows == 100_000


def browse(page: Path, picture: Path, profile: Path, width: int, height: int, *more: str) -> str:
    """Renders a page to a PNG; returns what the browser logged."""
    browser = shutil.which("chromium")
    assert browser
    switches = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--enable-logging=stderr", f"--window-size={width},{height}")  # fmt: skip
    command = [browser, *switches, *more, f"--user-data-dir={profile}", f"--screenshot={picture}", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH")
def test_a_browser_shows_it_and_blocks_nothing(store: Store, tmp_path: Path) -> None:
    log = browse(write_data_card(store), tmp_path / "card.png", tmp_path / "profile", 1200, 4000)
    assert "CONSOLE" not in log, log
    pixels = np.asarray(Image.open(tmp_path / "card.png").convert("RGB"))
    good, bad = ((pixels == colour).all(-1).sum() for colour in ((0x17, 0x79, 0x4A), (0xB4, 0x33, 0x2A)))
    assert min(good, bad) > 500  # bars of the funnel
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5000  # thumbnails


def test_file_sha256_is_untouched_by_a_card(store: Store) -> None:
    """A card changes nothing that was sealed."""
    before = file_sha256(store.path / INDEX), (store.path / MANIFEST).read_bytes()
    write_data_card(store)
    assert (file_sha256(store.path / INDEX), (store.path / MANIFEST).read_bytes()) == before


def test_a_balanced_selection_has_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings have one without a default: how many samples to keep."""
    opened = curate_here(write_dump(tmp_path / "dump", 40), tmp_path / "store")
    monkeypatch.setattr(selecting, "_digests_of", lambda stages: {"encoder": "x"})
    monkeypatch.setattr(
        selecting, "_embedded",
        lambda store, run, numbers, folder: EmbeddingBlocks.write(folder, [np.eye(40, 8, dtype=np.float32)[numbers]]),
    )  # fmt: skip
    stages = Stages(balance=BalanceConfig(target=10), encoder="runs/first")
    select(opened, "balanced", Policy(near_distance=None), Inputs(), stages)
    card = json.loads((write_data_card(opened, "balanced").parent / "data_card.json").read_text())
    assert "--balance 10" in card["commands"]["again"]
