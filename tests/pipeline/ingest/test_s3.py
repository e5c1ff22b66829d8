"""Sources in object storage give what they give on a local disk. A real S3 endpoint answers, on loopback."""

import gzip
import io
import logging
import os
import pickle
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from moto.server import ThreadedMotoServer

from pipeline.ingest import fetch, ranges, task
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.places import place_of
from pipeline.ingest.samples import Broken, Sample
from pipeline.ingest.sources import Plan, list_source, read
from pipeline.ingest.storage import Unreachable
from pipeline.stream.crops import CenterCrop
from pipeline.stream.read import Reader
from tests.pipeline.stores import curate_here

pytestmark = pytest.mark.s3
KEY, SECRET = "AKIDEXAMPLE", "se/cret+sauce"


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A bucket named `dumps`, emptied after the test; the environment leads to it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with closing(boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")) as client:
        client.create_bucket(Bucket="dumps")
        yield client
        for item in client.list_objects_v2(Bucket="dumps").get("Contents", []):
            client.delete_object(Bucket="dumps", Key=item["Key"])
        client.delete_bucket(Bucket="dumps")


@pytest.fixture
def source(
    tmp_path: Path, write: Callable[..., Path], tar: Callable[..., bytes], picture: Callable[..., bytes]
) -> Path:
    """Everything that a source can be."""
    table = io.BytesIO()
    pq.write_table(pa.table({"image": [picture(seed) for seed in range(5)], "text": list("abcde")}), table,
                   row_group_size=2)  # fmt: skip
    return write(tmp_path / "source", {
        **{f"train/cat/{seed}.jpg": picture(seed) for seed in range(20)}, "train/dog/x.jpg": picture(30),
        "train/dog/x.txt": "a sidecar", "train/empty.jpg": b"",
        "train/a.tar": tar({"1.jpg": picture(31), "1.txt": "one"}), "train/a_stats.json": '{"successes": 1}',
        "cut.tar": tar({"1.jpg": picture(32), "2.jpg": picture(33)})[:2000],
        "t.parquet": table.getvalue(), "cut.parquet": table.getvalue()[:-9], "notes/.hidden/x.jpg": b"x",
        "list.csv": "path,caption\ntrain/cat/3.jpg,three\ntrain/gone.jpg,\ntrain/dog/x.jpg,dog\n",
    })  # fmt: skip


def upload(client: Any, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket="dumps", Key=key, Body=path.read_bytes())


def content(plan: Plan) -> list[tuple[object, ...]]:
    """Everything that a plan's units give."""
    found: list[tuple[object, ...]] = []
    for unit in plan.units:
        for item in read(unit, plan.root):
            if isinstance(item, Broken):
                found.append((item.source, item.reason, item.lost))
            else:
                data = item.content if isinstance(item.content, bytes) else item.content.reason
                found.append((item.source, data, item.captions, item.label, item.split, item.address))
    return found


@pytest.mark.parametrize("single", ["", "/train/a.tar", "/cut.tar", "/t.parquet", "/list.csv"])
def test_object_storage_gives_what_a_local_disk_gives(bucket: Any, source: Path, single: str) -> None:
    upload(bucket, source, "deep/er")
    for marker in ("deep/er/train/", "deep/er/nothing/"):
        bucket.put_object(Bucket="dumps", Key=marker, Body=b"")
    local, remote = list_source(f"{source}{single}", 8), list_source(f"s3://dumps/deep/er{single}", 8)
    assert remote.units == local.units
    assert (remote.damaged, remote.declared, remote.class_names) == (local.damaged, local.declared, local.class_names)
    assert remote.root.shown == f"s3://dumps/deep/er{single}"
    travelled = pickle.loads(pickle.dumps(remote.root))
    there = content(Plan(**{**vars(remote), "root": travelled}))
    assert there == content(local)
    assert len(there) > 0


def test_a_bucket_is_a_source_and_a_changed_object_changes_its_listing(
    bucket: Any, picture: Callable[..., bytes]
) -> None:
    bucket.put_object(Bucket="dumps", Key="a.jpg", Body=picture(0))
    before = list_source("s3://dumps", 8)
    assert [row[:2] for row in content(before)] == [("a.jpg", picture(0))]
    assert list_source("s3://dumps/", 8).listing == before.listing
    time.sleep(1.1)  # S3 tells whole seconds
    bucket.put_object(Bucket="dumps", Key="a.jpg", Body=picture(0)[:-1] + b"x")
    assert list_source("s3://dumps", 8).listing != before.listing


def test_a_place_reads_ranges_of_large_objects(bucket: Any) -> None:
    body = bytes(range(256)) * 50_000
    bucket.put_object(Bucket="dumps", Key="big.bin", Body=body)
    place, name = place_of("s3://dumps/big.bin")
    with place.open(name) as file:
        assert file.read(10) == body[:10]
        assert file.seek(9_000_000) == 9_000_000
        assert file.read(5_000_000) == body[9_000_000:]
        assert (file.seek(-3, io.SEEK_END), file.read(), file.tell()) == (len(body) - 3, body[-3:], len(body))
    assert place.read(name, 99) == body[:100]
    with pytest.raises(FileNotFoundError):
        place.open("gone.bin")


def test_credentials_and_endpoint_in_a_uri_work_and_are_never_shown(
    bucket: Any, endpoint: str, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    bucket.put_object(Bucket="dumps", Key="x/a.jpg", Body=picture(0))
    options = f"endpoint_override={endpoint.removeprefix('http://')}&scheme=http"
    plan = list_source(f"s3://{KEY}:se%2Fcret%2Bsauce@dumps/x?{options}", 8)
    assert [row[:2] for row in content(plan)] == [("a.jpg", picture(0))]
    seen = repr(plan) + plan.root.shown + repr(place_of(f"s3://{KEY}:se%2Fcret%2Bsauce@dumps/x?{options}"))
    with pytest.raises(ValueError, match="nothing at s3://dumps/gone") as refused:
        place_of(f"s3://{KEY}:se%2Fcret%2Bsauce@dumps/gone?{options}")
    seen += str(refused.value)
    with pytest.raises(FileNotFoundError) as gone:
        plan.root.open("gone.jpg")
    for secret in (KEY, SECRET, "se%2Fcret", "sauce"):
        assert secret not in seen + str(gone.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert list_source(plan.root.shown, 8).listing == plan.listing  # what is shown leads there again


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://nowhere/x", "nothing at s3://nowhere/x: no such bucket"),
        ("s3://dumps/x", "nothing at s3://dumps/x: no such bucket, folder or file"),
        ("s3://AKID:topsecret@dumps/x?endpoint_override=127.0.0.1:9&scheme=http", "its endpoint cannot be reached"),
        ("s3://AKID:topsecret@dumps/x?endpoint_override=127.0.0.1:9&scheme=ftp", "s3://dumps/x.* cannot be used"),
    ],
)
def test_a_source_that_cannot_be_used_says_so_quickly(bucket: Any, uri: str, message: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ValueError, match=message) as refused:
        list_source(uri, 8)
    assert time.perf_counter() - began < 10
    assert "AKID" not in str(refused.value)
    assert "topsecret" not in str(refused.value)
    assert isinstance(refused.value, Unreachable) == ("127.0.0.1:9" in uri)


def test_refused_credentials_are_told_from_a_wrong_name(bucket: Any, endpoint: str) -> None:
    with closing(boto3.client("iam", endpoint_url=endpoint, region_name="us-east-1")) as iam:
        iam.create_user(UserName="nobody")
        keys = iam.create_access_key(UserName="nobody")["AccessKey"]
    bucket.put_object(Bucket="dumps", Key="x/a.jpg", Body=b"x")
    requests.post(f"{endpoint}/moto-api/reset-auth", data=b"0", timeout=10)  # from now on it asks for permissions
    try:
        with pytest.raises(ValueError, match="credentials are refused: set AWS_ACCESS_KEY_ID") as refused:
            list_source(f"s3://{keys['AccessKeyId']}:{keys['SecretAccessKey'].replace('/', '%2F')}@dumps/x", 8)
    finally:
        requests.post(f"{endpoint}/moto-api/reset-auth", data=b"inf", timeout=10)
    assert keys["SecretAccessKey"] not in str(refused.value)


@pytest.mark.parametrize("kind", ["folder", "x.tar", "x.tar.gz", "x.parquet"])
def test_a_connection_lost_while_reading_is_no_damage(tar: Callable[..., bytes], kind: str) -> None:
    noise = {f"{number:03d}.jpg": os.urandom(100_000) for number in range(150)}
    packed = tar(noise)
    table = io.BytesIO()
    pq.write_table(pa.table({"image": list(noise.values())}), table, row_group_size=20)
    objects = {"x.tar": packed, "x.tar.gz": gzip.compress(packed, 1), "x.parquet": table.getvalue()}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with closing(boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1",
                              aws_access_key_id=KEY, aws_secret_access_key=SECRET)) as client:  # fmt: skip
        client.create_bucket(Bucket=f"lost-{kind}")
        for name, body in (noise if kind == "folder" else {kind: objects[kind]}).items():
            client.put_object(Bucket=f"lost-{kind}", Key=f"x/{name}", Body=body)
    uri = f"s3://{KEY}:se%2Fcret@lost-{kind}/x?endpoint_override={host}:{port}&scheme=http"
    plan = list_source(uri, 1000, compressed=True)
    found = read(plan.units[0], plan.root)
    assert isinstance(next(found), Sample)
    server.stop()
    got: list[object] = []
    with pytest.raises(ConnectionError) as lost:
        got.extend(found)
    assert all(isinstance(item, Sample) for item in got)
    assert "se%2Fcret" not in str(lost.value)


def test_a_bucket_is_curated_and_an_index_in_place_streams_from_it(
    bucket: Any, tmp_path: Path, write: Callable[..., Path], tar: Callable[..., bytes], picture: Callable[..., bytes]
) -> None:
    """The same selection as from a local disk; and crops that come straight out of the bucket."""
    files = {f"a/{seed}.jpg": picture(seed) for seed in range(8)} | {"b/t.tar": tar({"9.jpg": picture(9)})}
    local = write(tmp_path / "source", files)
    upload(bucket, local, "dump")
    here = curate_here(local, tmp_path / "here")
    there = curate_here("s3://dumps/dump", tmp_path / "there")
    assert there.manifest.selection == here.manifest.selection
    assert there.manifest.source == "s3://dumps/dump"
    placed = curate_here("s3://dumps/dump", tmp_path / "placed", CurateConfig(in_place=True))
    assert placed.manifest.selection == here.manifest.selection
    assert [placed.read(number) for number in range(8)] == [picture(seed) for seed in range(8)]
    reader = Reader(CenterCrop(16), place=placed.place)
    assert reader.read(reader.references(placed, np.arange(9), np.zeros(9, np.int64)))["crops"].shape[0] == 9
    bucket.put_object(Bucket="dumps", Key="dump/a/3.jpg", Body=picture(77))
    with pytest.raises(ValueError, match=r"a/3\.jpg at byte 0: its bytes are not those that were sealed; restore"):
        reader.read(reader.references(placed, np.array([3]), np.zeros(1, np.int64)))


def test_a_task_reads_few_ranges_of_a_bucket_which_fails_now_and_then(
    bucket: Any, tmp_path: Path, tar: Callable[..., bytes], picture: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neighbours in one request, nothing read that is not needed, and every failed request sent again."""
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(fetch, "TRIES", 12)
    for name in "ab":
        pictures = {f"{seed}.jpg": picture(seed, (200, 200)) for seed in range(ord(name), ord(name) + 12)}
        far = {"z.bin": os.urandom(5_000_000), "z.jpg": picture(ord(name) + 50)}
        bucket.put_object(Bucket="dumps", Key=f"dump/{name}.tar", Body=tar(pictures | far))
    store = curate_here("s3://dumps/dump", tmp_path / "store", CurateConfig(in_place=True))
    reader = Reader(CenterCrop(16), place=store.place)
    references = reader.references(store, np.random.default_rng(0).permutation(26), np.zeros(26, np.int64))
    asked: list[int] = []
    read_at, chance = ranges.RemoteFile.read_at, random.Random(1)

    def counted(self: Any, offset: int, length: int) -> bytes:
        asked.append(length)
        return read_at(self, offset, length)

    def flaky(self: Any, offset: int, length: int) -> bytes:
        if chance.random() < 0.3:
            raise ConnectionError("503 Slow Down")
        return read_at(self, offset, length if chance.random() < 0.7 else length // 2 + 1)

    monkeypatch.setattr(ranges.RemoteFile, "read_at", counted)
    whole = reader.read(references)
    assert len(asked) == 4  # twelve neighbours, and one that lies far behind them, of each tar
    assert sum(asked) < 1_500_000
    monkeypatch.setattr(ranges.RemoteFile, "read_at", flaky)
    reads = [reader.read(references) for _ in range(6)]
    assert sum(columns.pop("retries").sum() for columns in reads) > 0
    for columns in reads:
        assert all(np.array_equal(whole[name], values) for name, values in columns.items())

    def down(self: Any, offset: int, length: int) -> bytes:
        raise ConnectionError("503 Slow Down")

    monkeypatch.setattr(ranges.RemoteFile, "read_at", down)
    with pytest.raises(ConnectionError, match=r"[ab]\.tar cannot be read: 503 Slow Down; tried 12 times"):
        reader.read(references)


def test_storage_that_fails_now_and_then_costs_no_sample(
    bucket: Any, tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit is read again; what the failed attempt had written is replaced."""
    for seed in range(6):
        bucket.put_object(Bucket="dumps", Key=f"dump/{seed}.jpg", Body=picture(seed))
    reads, failures = task.read, [2]

    def flaky(unit: Any, root: Any) -> Iterator[Any]:
        for number, sample in enumerate(reads(unit, root)):
            if number == 3 and failures[0]:
                failures[0] -= 1
                raise ConnectionError("503")
            yield sample

    monkeypatch.setattr(task, "read", flaky)
    monkeypatch.setattr(task, "_PAUSES", (0.01, 0.01))
    store = curate_here("s3://dumps/dump", tmp_path / "store")
    assert store.manifest.seen == store.manifest.kept == 6
    failures[0] = 3
    with pytest.raises(ConnectionError):
        curate_here("s3://dumps/dump", tmp_path / "never")
