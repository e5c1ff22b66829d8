"""Tests of jobs.demo_dump: what a generated dump holds, and that its labels are not to be had from raw pixels."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from jobs.demo_dump import COLOURS, LABELS, SMALLEST_DUMP, DumpSummary, generate_dump

NUM_FILES = 1500
NEAR_DUPLICATE_BITS = 44  # of the 256 of difference_hash
JPEG_MAGIC = b"\xff\xd8"


@dataclass(frozen=True)
class Dump:
    """A generated dump, read back: every file but captions, its bytes, and its upright RGB picture if it decodes."""

    summary: DumpSummary
    contents: dict[Path, bytes]
    pictures: dict[Path, Image.Image]

    @property
    def broken(self) -> dict[Path, bytes]:
        """The bytes of the files that are no whole image."""
        return {path: data for path, data in self.contents.items() if path not in self.pictures}

    def without_exact_duplicates(self) -> list[Path]:
        """One path for each different content that decodes."""
        return list({self.contents[path]: path for path in self.pictures}.values())


def decode(path: Path) -> Image.Image | None:
    """The upright RGB picture in a file, or None if the file cannot be decoded to its end."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except OSError:
        return None


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Dump:
    """A dump of NUM_FILES files."""
    folder = tmp_path_factory.mktemp("dump")
    summary = generate_dump(folder, NUM_FILES, seed=3)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".txt")
    decoded = {path: decode(path) for path in files}
    pictures = {path: picture for path, picture in decoded.items() if picture is not None}
    return Dump(summary, {path: path.read_bytes() for path in files}, pictures)


def difference_hash(image: Image.Image) -> np.ndarray:
    """Perceptual hash (256,) bool: whether lightness rises from each of 16 x 17 cells to the next in its row."""
    cells = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.LANCZOS), np.int16)
    return (np.diff(cells, axis=1) > 0).ravel()


def near_duplicate_pairs(pictures: list[Image.Image]) -> np.ndarray:
    """Index pairs (P, 2), first below second, of pictures whose hashes differ in few bits."""
    bits = np.stack([difference_hash(picture) for picture in pictures]).astype(np.float32)
    distance = bits @ (1 - bits).T + (1 - bits) @ bits.T
    return np.argwhere(np.triu(distance <= NEAR_DUPLICATE_BITS, k=1))


def nearest_neighbour_accuracy(features: np.ndarray, labels: np.ndarray, neighbours: int = 20) -> float:
    """Cosine kNN accuracy on the last 20 %, votes weighted by exp(similarity / 0.07); features (N, D), labels (N,)."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    split = int(0.8 * len(features))
    similarity = features[split:] @ features[:split].T
    nearest = np.argsort(-similarity, axis=1)[:, :neighbours]
    weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / 0.07)
    neighbour_labels = labels[:split][nearest]
    votes = np.stack([(weights * (neighbour_labels == label)).sum(axis=1) for label in range(len(LABELS))], axis=1)
    return float((votes.argmax(axis=1) == labels[split:]).mean())


def test_same_seed_gives_same_bytes_and_another_seed_differs(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        generate_dump(tmp_path / name, 120, seed)
    first, again, other = (
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in "abc"
    )
    assert first == again
    assert not set(first) & set(other)
    assert len(first) == 2 * 120


def test_counts_match_the_files_on_disk(dump: Dump) -> None:
    summary = dump.summary
    assert summary.total == len(dump.contents) == NUM_FILES
    assert len(dump.broken) == summary.truncated + summary.wrong_format
    assert len(dump.without_exact_duplicates()) == summary.images + summary.near_duplicates


def test_exact_duplicates_share_their_sha256_pairwise(dump: Dump) -> None:
    copies = Counter(hashlib.sha256(dump.contents[path]).hexdigest() for path in dump.pictures)
    assert sum(count == 2 for count in copies.values()) == dump.summary.exact_duplicates >= 1
    assert max(copies.values()) == 2


def test_near_duplicates_look_alike_and_other_pictures_do_not(dump: Dump) -> None:
    paths = dump.without_exact_duplicates()
    pairs = near_duplicate_pairs([dump.pictures[path] for path in paths])
    assert len(pairs) == dump.summary.near_duplicates >= 1
    assert len(np.unique(pairs)) == 2 * len(pairs)
    assert all(paths[a].parent == paths[b].parent for a, b in pairs)


def test_truncated_files_open_as_jpeg_but_do_not_load(dump: Dump) -> None:
    truncated = [path for path, data in dump.broken.items() if data.startswith(JPEG_MAGIC)]
    assert len(truncated) == dump.summary.truncated >= 1
    for path in truncated:
        with Image.open(path) as image, pytest.raises(OSError, match="truncated"):
            image.load()


def test_wrong_format_files_take_every_form(dump: Dump) -> None:
    wrong = {path: data for path, data in dump.broken.items() if not data.startswith(JPEG_MAGIC)}
    assert len(wrong) == dump.summary.wrong_format
    beginnings = {(path.suffix, data[:5]) for path, data in wrong.items()}
    assert {(".jpg", b"<!DOC"), (".jpg", b""), (".jpg", b"%PDF-"), (".png", b"Pictu")} <= beginnings
    assert ".bmp" in {path.suffix for path in wrong}


def test_pictures_come_in_every_mode_and_size(dump: Dump) -> None:
    kinds, turned = set(), 0
    for path in dump.pictures:
        with Image.open(path) as image:
            kinds.add((image.format, image.mode))
            turned += image.getexif().get(0x0112, 1) != 1
    assert kinds == {("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "L")}
    assert turned > 0
    sides = [side for picture in dump.pictures.values() for side in picture.size]
    assert 32 <= min(sides) < 60
    assert 90 < max(sides) <= 128


def test_every_file_has_a_caption_that_names_its_label_and_a_colour(dump: Dump) -> None:
    assert {path.parent.name for path in dump.contents} == set(LABELS)
    for path in dump.contents:
        words = set(path.with_suffix(".txt").read_text(encoding="utf-8").replace(",", "").split())
        named = {label for label in LABELS if {f"{label}s", f"{label}es"} & words}
        assert named == {path.parent.name}
        assert words & set(COLOURS)


@pytest.mark.parametrize("side", [32, 12])
def test_raw_pixels_do_not_give_the_label_away(dump: Dump, side: int) -> None:
    paths = dump.without_exact_duplicates()
    pairs = near_duplicate_pairs([dump.pictures[path] for path in paths])
    paths = [path for index, path in enumerate(paths) if index not in pairs[:, 1]]
    assert len(paths) == dump.summary.images
    order = np.random.default_rng(0).permutation(len(paths))
    pixels = np.stack([np.asarray(dump.pictures[path].resize((side, side)), np.float32).ravel() for path in paths])
    labels = np.array([LABELS.index(path.parent.name) for path in paths])
    assert nearest_neighbour_accuracy(pixels[order], labels[order]) < 0.35


def test_refuses_a_tiny_dump_and_a_folder_in_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least"):
        generate_dump(tmp_path / "tiny", SMALLEST_DUMP - 1)
    generate_dump(tmp_path / "used", SMALLEST_DUMP)
    with pytest.raises(FileExistsError, match="already holds"):
        generate_dump(tmp_path / "used", SMALLEST_DUMP)
