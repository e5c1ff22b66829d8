"""Places: what is opened, what is never opened, and what is shown. Object storage is in test_s3.py."""

import os
import pickle
from pathlib import Path

import pytest
from pyarrow import fs

from pipeline.ingest.places import Entry, Place, declared_path, path_fault, place_of

BAD = ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "", "a\0b", "a\\b", "a/\udc80"]
SCHEMES = ["pipe:touch x", "file:x", "s3://b/x", "simplecache::http://x", "a::b", "C:/x", "~:/x::y"]
DECLARED_BAD = [*BAD[:4], *BAD[6:], *SCHEMES]


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.bin").write_bytes(bytes(range(10)))
    place, name = place_of(tmp_path)
    assert name == ""
    assert place.read("a/1.bin", 100) == bytes(range(10))
    assert place.read("a/1.bin", 4) == bytes(range(5))
    with place.open("a/1.bin") as file:
        assert (file.seek(7), file.read(), file.seek(0), file.read(1)) == (7, b"\x07\x08\x09", 0, b"\0")


@pytest.mark.parametrize("path", BAD)
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    (tmp_path / "source/a").mkdir(parents=True)
    place, _ = place_of(tmp_path / "source")
    assert path_fault(path)
    with pytest.raises(OSError, match="a path that"):
        place.open(path)


@pytest.mark.parametrize("path", DECLARED_BAD)
def test_declared_paths_name_no_scheme_and_stay_below(path: str) -> None:
    with pytest.raises(ValueError, match="the path "):
        declared_path(path)


def test_plain_paths_are_plain() -> None:
    assert [declared_path(path) for path in ("./a/b.jpg", "a b/ü.jpg", "..a/b..jpg")] == [
        "a/b.jpg",
        "a b/ü.jpg",
        "..a/b..jpg",
    ]


def test_links_and_pipes_are_never_followed_nor_waited_for(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/1.jpg").write_bytes(b"secret")
    source = tmp_path / "source"
    source.mkdir()
    (source / "folder").symlink_to(tmp_path / "secrets")
    (source / "1.jpg").symlink_to(tmp_path / "secrets/1.jpg")
    os.mkfifo(source / "pipe")
    place, _ = place_of(source)
    for path in ("folder/1.jpg", "1.jpg", "pipe", "folder"):
        with pytest.raises(OSError, match=r".+"):
            place.open(path)
    assert sorted(entry.path for entry in place.entries() if entry.problem) == ["1.jpg", "folder", "pipe"]
    assert [entry.problem is None for entry in place.entries("folder")] == [False]
    assert list(place.entries("gone")) == []


def test_a_folder_or_file_that_a_person_gives_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/1.tar").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "link.tar").symlink_to(tmp_path / "real/1.tar")
    for given, path in (("link", "1.tar"), ("link.tar", "1.tar")):
        place, name = place_of(tmp_path / given)
        assert name in ("", path)
        assert place.read(path, 10) == b"x"


def test_a_file_uri_is_a_local_path(tmp_path: Path) -> None:
    (tmp_path / "a b.tar").write_bytes(b"x")
    place, name = place_of(f"file://{tmp_path}/a%20b.tar")
    assert (place.is_local, place.folder, name, place.shown) == (True, str(tmp_path), "a b.tar", f"{tmp_path}/a b.tar")


def test_a_place_travels_to_other_processes(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"x")
    place = pickle.loads(pickle.dumps(place_of(tmp_path)[0]))
    assert place.read("1.jpg", 10) == b"x"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/at/all", "no source at /nowhere/at/all: give a folder"),
        ("http://example.org/x.tar", "scheme 'http' are not read"),
        ("fsspec+http://example.org/x.tar", r"scheme 'fsspec\+http' are not read"),
        ("pipe://x", "scheme 'pipe' are not read"),
        ("file://machine/x", "names the machine machine"),
        ("s3:///x", "s3://bucket/folder"),
        ("s3://AKID:se/cret@bucket/x", "percent-encode"),
        ("s3://AKID:secret@bucket/x?colour=red", "unknown options colour"),
        ("s3://AKID:secret@bucket/x?endpoint_override=http://me:secret@host", "endpoint of s3://bucket/x holds"),
        ("abfs://box:secret@/x?sig=secret", "abfs://box@/x cannot be used"),
    ],
)
def test_a_wrong_source_is_refused_with_a_way_out_and_no_secret(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        place_of(source)
    assert "secret" not in str(refused.value)
    assert "cret@" not in str(refused.value)


class Flat(fs.FileSystemHandler):
    """Object storage with keys that a local disk could not hold."""

    KEYS = ("box/a.jpg", "box/sub/", "box/sub/b.jpg", "box/../c.jpg", "box/a//d.jpg", "box/.git/e", "box/w\\f.jpg")

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return [fs.FileInfo(key, fs.FileType.File, size=1, mtime_ns=7) for key in self.KEYS]

    def _none(self, *args: object) -> None:
        raise NotImplementedError

    def get_type_name(self) -> str:
        return "flat"

    get_file_info = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _none  # type: ignore[assignment]
    move = copy_file = open_input_stream = open_output_stream = open_append_stream = normalize_path = _none  # type: ignore[assignment]

    def open_input_file(self, path: str) -> object:
        raise OSError("a network that is down")


def test_storage_lists_files_only_and_names_odd_keys() -> None:
    place = Place(fs.PyFileSystem(Flat()), "box", "flat://box")
    assert sorted(place.entries()) == [
        Entry("../c.jpg", 1, 7, "its path leads upwards (..)"),
        Entry("a.jpg", 1, 7),
        Entry("a//d.jpg", 1, 7, "its path has an empty part"),
        Entry("sub/b.jpg", 1, 7),
        Entry("w\\f.jpg", 1, 7, "its path holds a backslash"),
    ]


def test_a_network_that_is_down_is_no_fault_of_the_file() -> None:
    with pytest.raises(ConnectionError, match="cannot be opened now"):
        Place(fs.PyFileSystem(Flat()), "box", "flat://box").open("a.jpg")
