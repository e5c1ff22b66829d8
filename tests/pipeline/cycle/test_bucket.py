"""Deliveries in object storage, on a real S3 endpoint on loopback."""

import pytest
from sqlalchemy import select

from pipeline.cycle.config import Source
from pipeline.cycle.contents import read_contents
from pipeline.cycle.deliveries import look
from pipeline.cycle.delivery import child_of, still_sealed
from pipeline.ledger.database import Ledger
from pipeline.ledger.tables import dump
from tests.pipeline.ingest.test_s3 import bucket, endpoint

__all__ = ["bucket", "endpoint"]


@pytest.mark.s3
def test_a_delivery_in_a_bucket_is_sealed_and_drifts_as_one_in_a_folder(bucket, tmp_path):
    source = Source(name="web", root="s3://dumps/in?region=us-east-1", quiet_minutes=0)
    ledger = Ledger.open(str(tmp_path / "ledger.db"), create=True)

    def put(**objects: bytes) -> list[str]:
        for name, content in objects.items():
            bucket.put_object(Bucket="dumps", Key=f"in/{name.replace('__', '/')}", Body=content)
        return [one.kind for one in look(ledger, tmp_path, source)]

    assert put(monday__a=b"1", monday__sub__b=b"2") == ["waiting"]
    assert put(monday___SUCCESS=b"") == ["sealed"]
    assert put() == []
    with ledger.reading() as connection:
        row = connection.execute(select(dump)).one()
    contents = read_contents(tmp_path, row.dump_id)
    assert (row.files, row.bytes, sorted(contents.files)) == (2, 2, ["a", "sub/b"])
    assert contents.name == "monday"
    assert still_sealed(source, contents) is None
    assert put(tuesday__a=b"1", tuesday__sub__b=b"2", tuesday___SUCCESS=b"") == ["known"]
    assert put(monday__late=b"3") == ["late"]
    assert put(monday__a=b"other") == ["drifted"]
    assert "a" in (still_sealed(source, contents) or "")


def test_a_delivery_is_named_before_the_options_of_its_root():
    assert child_of("s3://b/in/?region=x", "a") == "s3://b/in/a?region=x"
    assert child_of("/in/what?", "a") == "/in/what?/a"
