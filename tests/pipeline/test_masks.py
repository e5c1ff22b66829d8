"""Pictures with masks as they come: layouts, lists, damage; nothing bad gets in, nothing good is lost silently."""

import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluate import masks as reading
from pipeline.evaluate.masks import IGNORED, checked_mask, read_segmented
from pipeline.ingest.answers import DecodeLimits
from pipeline.ingest.decoder_child import KEPT
from pipeline.ingest.mask_child import central, decode
from pipeline.ingest.refusals import Refusal
from tests.pipeline.shapes import write_shapes

OPTIONS = {"side": 8, "min_side": 1, "max_pixels": 10**6}


@pytest.fixture
def folder(tmp_path):
    return write_shapes(tmp_path / "set", count=12, side=40)


def gray_png(values: np.ndarray, bits: int) -> bytes:
    """A gray PNG of 1, 2, 4, 8 or 16 bits, which Pillow does not write."""
    rows = b""
    for row in values:
        packed = "".join(format(int(value), f"0{bits}b") for value in row)
        packed += "0" * (-len(packed) % 8)
        rows += b"\0" + int(packed, 2).to_bytes(len(packed) // 8, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_of_any_depth_keeps_its_class_ids(bits):
    values = np.arange(64).reshape(8, 8) % 2**bits
    assert np.array_equal(decode(gray_png(values, bits), OPTIONS).ids, values)


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
def test_palette_ids_are_read_and_no_colours(tmp_path, colours):
    values = (np.arange(64).reshape(8, 8) % colours).astype(np.uint8)
    image = Image.fromarray(values, "P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * colours).tolist())
    image.save(tmp_path / "mask.png", bits=(colours - 1).bit_length())
    assert np.array_equal(decode((tmp_path / "mask.png").read_bytes(), OPTIONS).ids, values)


def test_the_central_square_is_taken_by_nearest_neighbour():
    values = np.arange(6 * 10).reshape(6, 10)
    assert np.array_equal(values[central(10, 6, 6)], values[:, 2:8])
    assert np.array_equal(values[central(10, 6, 3)], values[1::2, 3:8:2])
    assert np.array_equal(values[central(10, 6, 12)], values[:, 2:8].repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_what_holds_no_class_ids_is_refused(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "mask.png")
    with pytest.raises(Refusal, match=f"PNG of mode {mode}; class ids are PNG, of a palette or gray"):
        decode((tmp_path / "mask.png").read_bytes(), OPTIONS)


def test_a_mask_out_of_bounds_or_cut_is_refused():
    good = gray_png(np.zeros((64, 64), int), 8)
    with pytest.raises(Refusal, match="pixels_over_cap"):
        decode(good, OPTIONS | {"max_pixels": 1000})
    with pytest.raises(Refusal, match="decode_failed"):
        decode(good[:-30], OPTIONS)


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [(b'{"width": 9, "height": 9}', 63, "63 bytes that are no mask of 8×8"), (b"{}", 64, "Field required"),
     (b'{"width": 0, "height": 9}', 64, "greater than"), (b'{"width": 9999, "height": 9999}', 64, "out of bounds")],
)  # fmt: skip
def test_an_answer_of_a_child_that_cannot_be_is_not_believed(header, body, message):
    with pytest.raises(ValueError, match=message):
        checked_mask(KEPT, header, b"x" * body, DecodeLimits(side=8, max_pixels=10**6))


def test_lists_tell_what_is_judged(folder):
    found = read_segmented(str(folder), 16)
    assert (found.images.shape, found.masks.shape) == ((12, 16, 16, 3), (12, 16, 16))
    assert (found.seen, int(found.is_test.sum()), dict(found.refused)) == (12, 3, {})
    assert set(np.unique(found.masks)) == {0, 1, 2, IGNORED}
    assert found.classes == ("0", "1", "2")
    assert found.told == "set: 12 pairs seen, 9 to train and 3 to test"
    boxes = found.images[found.masks == 1].astype(int)
    assert (boxes[:, 0] > boxes[:, 2]).mean() > 0.9  # red: the pictures and their masks lie on each other


def test_without_lists_a_fifth_is_judged_by_a_hash_of_the_name(tmp_path):
    folder = write_shapes(tmp_path / "plain", count=40, side=24, voc=False)
    found = read_segmented(str(folder), 16)
    assert 3 <= found.is_test.sum() <= 14
    (folder / "masks" / "000.png").unlink()
    fewer = read_segmented(str(folder), 16)
    assert (fewer.seen, fewer.without_mask) == (39, 1)
    assert "1 pictures have no mask" in fewer.told
    assert abs(int(found.is_test.sum()) - int(fewer.is_test.sum())) <= 1
    assert fewer.digest != found.digest


def test_every_bad_pair_is_counted_with_its_reason_and_the_others_are_kept(folder, tmp_path):
    images, masks = folder / "JPEGImages", folder / "SegmentationClass"
    (images / "000.jpg").unlink()
    (images / "001.jpg").write_bytes(b"\xff\xd8\xff cut")
    (masks / "002.png").write_bytes(b"no mask")
    Image.new("L", (30, 40)).save(masks / "003.png")
    Image.new("RGB", (50, 40)).save(masks / "004.png")
    Image.new("L", (50, 40), 7).save(masks / "005.png")
    turned = Image.open(images / "006.jpg")
    exif = turned.getexif()
    exif[0x0112] = 3
    turned.save(images / "006.jpg", exif=exif)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("000\n004\n010")
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text(
        "\n".join(f"{n:03d}" for n in (1, 2, 3, 5, 6, 7, 8, 9, 11))
    )
    shutil.copy(images / "007.jpg", images / "007.jpeg")
    (tmp_path / "secret.png").write_bytes((masks / "008.png").read_bytes())
    (masks / "008.png").unlink()
    (masks / "008.png").symlink_to(tmp_path / "secret.png")
    shutil.copy(masks / "009.png", masks / "unlisted.png")
    shutil.copy(images / "009.jpg", images / "unlisted.jpg")
    (folder / "classes.txt").write_text("ground\nbox\ndisc\n")
    with (folder / "ImageSets" / "Segmentation" / "train.txt").open("a") as lines:
        lines.write("\nmissing\n")
    found = read_segmented(str(folder), 16)
    reasons = {
        "000": "there is no picture for this mask",
        "001": "its picture was refused",
        "002": "its mask was refused",
        "003": "the picture has 50×40 pixels, its mask 30×40",
        "004": "mode RGB",
        "005": "it has class 7, and classes.txt names 3",
        "006": "EXIF orientation",
        "007": "two pictures have this name",
        "008": "a symbolic link",
        "missing": "a list names it, and it has no mask",
        "unlisted": "neither train.txt nor val.txt names it",
    }
    assert found.refused.keys() == reasons.keys()
    for name, words in reasons.items():
        assert words in found.refused[name]
    assert found.seen == 14 == len(found.masks) + len(found.refused)
    assert found.classes == ("ground", "box", "disc")
    assert "11 refused (first 000: there is no picture for this mask)" in found.told


def test_more_than_enough_is_left_out_and_said(folder, monkeypatch):
    monkeypatch.setattr(reading, "MAX_IMAGES", 4)
    found = read_segmented(str(folder), 16)
    assert (len(found.masks), found.left_out, found.seen) == (7, 5, 12)
    assert "5 more than 4 of a split left out" in found.told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lists: (lists / "val.txt").unlink(), "has no ImageSets/Segmentation/val.txt: give both lists, or none"),
        (lambda lists: (lists / "val.txt").write_text("001\n"), "001 stands in .*train.txt and in .*val.txt"),
        (lambda lists: (lists / "val.txt").write_text("nothing\n"), "the masks to test show no class"),
        (lambda lists: shutil.rmtree(lists.parent.parent / "JPEGImages"), "must have the folders JPEGImages/ and Segm"),
    ],
)
def test_a_set_that_cannot_be_judged_is_refused_in_words(folder, change, message):
    change(folder / "ImageSets" / "Segmentation")
    with pytest.raises(ValueError, match=message):
        read_segmented(str(folder), 16)


def test_black_and_white_masks_are_told_from_class_ids(tmp_path):
    folder = write_shapes(tmp_path / "plain", count=12, side=24, voc=False)
    for path in (folder / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) == 1).astype(np.uint8) * 255).save(path)
    with pytest.raises(
        ValueError, match=r"the masks to train show only class 0, .* \(black and white masks need 0 and 1"
    ):
        read_segmented(str(folder), 16)
    with pytest.raises(ValueError, match="is a file: name the folder that holds JPEGImages/"):
        read_segmented(str(folder / "masks" / "000.png"), 16)
