"""Colours are those that a good viewer shows: made pictures of odd kinds, and a real pack against a browser."""

import base64
import html
import json
import os
import re
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest.decode import decoded, full_pixels
from pipeline.ingest.refusals import Refusal

Encode = Callable[..., bytes]
DATA = Path(os.environ.get("FERAL_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
PACK = DATA / "messy_dev.tar.gz"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int], depth: int, kind: int, rows: bytes, *before: bytes) -> bytes:
    """A PNG by hand: `rows` with their filter bytes, chunks that stand before them."""
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    body = b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def bitmap(pixels: bytes) -> bytes:
    """A BMP of 2×1 pixels, red green blue alpha by bit fields."""
    header = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 2835, 2835, 0, 0)
    masks = struct.pack("<IIII", 0xFF000000, 0xFF0000, 0xFF00, 0xFF) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + 108 + 8, 0, 0, 14 + 108) + header + masks + pixels


def test_sixteen_bits_of_colour_keep_their_tones() -> None:
    values = np.array([[[0, 257 * 100, 65535], [257 * 7, 257 * 250, 257]]], ">u2")
    raw = png((2, 1), 16, 2, b"\0" + values.tobytes())
    assert np.abs(full_pixels(raw).astype(int) - values.astype(int) // 257).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_value_of_gray_is_white(depth: int) -> None:
    kind = {8: "u1", 16: ">u2"}[depth]
    rows = b"\0" + np.array([20, 30, 20], kind).tobytes()
    got = full_pixels(png((3, 1), depth, 0, rows, chunk(b"tRNS", struct.pack(">H", 20))))
    assert got[0, :, 0].tolist() == ([255, 30, 255] if depth == 8 else [255, 0, 255])


def test_the_transparent_colour_is_white_and_its_kin_are_not() -> None:
    rows = b"\0" + bytes((1, 2, 3, 1, 2, 4))
    got = full_pixels(png((2, 1), 8, 2, rows, chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))))
    assert got.tolist() == [[[255, 255, 255], [1, 2, 4]]]


def test_a_palette_may_be_transparent_in_part() -> None:
    palette = chunk(b"PLTE", bytes((*RED, *GREEN, *BLACK)))
    got = full_pixels(png((3, 1), 8, 3, b"\0\0\1\2", palette, chunk(b"tRNS", bytes((255, 0, 51)))))
    assert got.tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]


def test_one_bit_is_black_and_white() -> None:
    assert full_pixels(png((3, 1), 1, 0, b"\0\xa0"))[0, :, 0].tolist() == [255, 0, 255]


@pytest.mark.parametrize(
    ("colour", "rgb"), [((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), BLACK), ((0,) * 4, WHITE)]
)
def test_cmyk_of_a_jpeg_is_the_right_way_round(encode: Encode, colour: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    got = full_pixels(encode(Image.new("CMYK", (16, 16), colour), "JPEG", quality=95))
    assert np.abs(got.astype(int) - rgb).max() <= 3


def test_what_the_first_frame_of_a_gif_leaves_bare_is_white(encode: Encode) -> None:
    raw = bytearray(encode(Image.new("P", (10, 10), 1), "GIF"))
    raw[6:10] = struct.pack("<HH", 30, 20)  # the canvas
    got = full_pixels(bytes(raw))
    assert got.shape == (20, 30, 3)
    assert (got[10:] == 255).all()
    assert (got[:, 10:] == 255).all()
    assert not (got[:10, :10] == 255).all()
    assert "alpha" in decoded(bytes(raw), 288).flags


def test_a_bitmap_whose_alpha_was_never_filled_in_is_opaque() -> None:
    never, half = bytes((0, *BLUE, 0, *RED)), bytes((255, *BLUE, 0, *RED))  # alpha lies in the lowest byte
    assert full_pixels(bitmap(never)).tolist() == [[list(RED), list(BLUE)]]
    assert full_pixels(bitmap(half)).tolist() == [[list(RED), list(WHITE)]]


def test_colour_profiles_and_gamma_are_left_as_they_are(encode: Encode) -> None:
    plain, marked = Image.new("RGB", (9, 9), (90, 120, 40)), chunk(b"gAMA", struct.pack(">I", 100_000))
    raw = png((1, 1), 8, 2, b"\0" + bytes((90, 120, 40)), marked)
    assert full_pixels(raw).tolist() == [[[90, 120, 40]]]
    profiled = encode(plain, icc_profile=b"some profile")
    assert (full_pixels(profiled) == (90, 120, 40)).all()
    assert decoded(profiled, 288).flags == ("icc",)


# Where we and the browser differ, and why that stays.
KNOWN = {
    "metadata that the browser does not read: EXIF of WebP, XMP, ImageMagick's text": (
        *(f"hopper_orientation_{number}.webp" for number in range(2, 9)),
        "xmp_tags_orientation.png",
        "xmp_tags_orientation_exiftool.png",
        "exif_imagemagick_orientation.png",
    ),
    "a colour profile or gamma inside a BMP is left as it is": ("pal8v4.bmp", "rgb24prof2.bmp"),
    "alpha that Pillow does not read: of one bit, or without bit fields": (
        "V5_A1_R5_G5_B5.bmp",
        "V5_A8_R8_G8_B8_Rgb.bmp",
        "V5_A8_R8_G8_B8_Rgb_BadMask.bmp",
    ),
    "an alpha that is zero throughout: never filled in, to us; invisible, to Chromium (as of 156)": (
        "rgb32bf-abgr.bmp",
        "V3_A1_R5_G5_B5.bmp",
        "V3_A1_R5_G5_B5_Top_Down.bmp",
    ),
    "pixels that run-length coding skips are colour 0, not transparent": (
        "pal8rletrns.bmp",
        "pal4rletrns.bmp",
    ),
    "a damaged file of which each shows something else": (
        "issue_2811.gif",
        "badrle.bmp",
        "mmap_error.bmp",
        "bad_palette_index.webp",
    ),
}
SCRIPT = """<!doctype html><meta charset=utf-8><pre id=shown></pre><script>
const shown = [];
function draw(name, image) {
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  if (!width || !height || width * height > MOST) return;
  const canvas = Object.assign(document.createElement('canvas'), {width, height});
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.fillStyle = 'white';
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data, parts = [];
  const rgb = rgba.filter((_, i) => i % 4 < 3);
  for (let i = 0; i < rgb.length; i += 8192) parts.push(String.fromCharCode(...rgb.subarray(i, i + 8192)));
  shown.push({name, width, height, rgb: btoa(parts.join(''))});
}
for (const [name, kind, data] of FILES) {
  const image = new Image();
  image.onload = () => draw(name, image);
  image.src = `data:image/${kind};base64,${data}`;
}
window.onload = () => { document.getElementById('shown').textContent = JSON.stringify(shown); };
</script>"""
MOST = 400_000  # pixels of a picture that is compared
MANAGING = (b"gAMA", b"cHRM", b"iCCP", b"sRGB", b"cICP", b"acTL", b"fcTL", b"fdAT")


def kind_of(raw: bytes) -> str | None:
    """Of what a browser shows, too."""
    signatures = {b"\xff\xd8": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp"}
    return next((kind for signature, kind in signatures.items() if raw.startswith(signature)), None)


def unmanaged(raw: bytes) -> bytes:
    """A PNG without colour management and animation, a JPEG without its profile; all else as it is."""
    if raw.startswith(b"\x89PNG"):
        place, out = 8, raw[:8]
        while place + 12 <= len(raw):
            end = place + 12 + int.from_bytes(raw[place : place + 4], "big")
            drop = raw[place + 4 : place + 8] in (
                b"gAMA",
                b"cHRM",
                b"iCCP",
                b"sRGB",
                b"cICP",
                b"acTL",
                b"fcTL",
                b"fdAT",
            )
            out += b"" if drop else raw[place:end]
            place = end
        return out + raw[place:]
    if raw.startswith(b"\xff\xd8"):
        place, out = 2, raw[:2]
        while place + 4 <= len(raw) and raw[place] == 0xFF and raw[place + 1] not in (0xDA, 0xFF, 0):
            end = place + 2 + int.from_bytes(raw[place + 2 : place + 4], "big")
            out += b"" if raw[place + 4 : place + 15] == b"ICC_PROFILE" else raw[place:end]
            place = end
        return out + raw[place:]
    return raw


def shown_by_browser(files: dict[str, bytes], folder: Path) -> dict[str, np.ndarray]:
    """What the browser draws over white, (H, W, 3) uint8 by name; nothing for what it cannot show."""
    assert BROWSER is not None
    listed = [(name, kind_of(raw), base64.b64encode(raw).decode()) for name, raw in files.items()]
    page = folder / "page.html"
    page.write_text(SCRIPT.replace("FILES", json.dumps(listed)).replace("MOST", str(MOST)))
    command = [
        BROWSER,
        "--headless",
        "--disable-gpu",
        "--force-color-profile=srgb",
        f"--user-data-dir={folder}/profile",
    ]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    result = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, timeout=200, check=True)
    found = re.search(r'<pre id="shown">(.*?)</pre>', result.stdout.decode(), re.DOTALL)
    assert found is not None
    rows: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    return {
        row["name"]: np.frombuffer(base64.b64decode(row["rgb"]), np.uint8).reshape(row["height"], row["width"], 3)
        for row in rows
    }


def batches(files: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
    batch: dict[str, bytes] = {}
    for name, raw in files.items():
        if batch and (len(batch) >= 100 or sum(map(len, batch.values())) + len(raw) > 3e6):
            yield batch
            batch = {}
        batch[name] = raw
    yield batch


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
@pytest.mark.skipif(not PACK.exists(), reason=f"needs {PACK.name}: set FERAL_TEST_DATA to the folder that holds it")
def test_what_a_browser_shows_we_see(tmp_path: Path) -> None:
    """Mean difference of at most 2 of 255, but for files that are named here with a reason."""
    files = {}
    with tarfile.open(PACK) as archive:
        for member in archive:
            raw = archive.extractfile(member).read() if member.isfile() else b""  # type: ignore[union-attr]
            if kind_of(raw):
                files[member.name] = raw
    known = {name for names in KNOWN.values() for name in names}
    compared, refused, differ = 0, 0, set()
    for batch in batches(files):
        shown = shown_by_browser({name: unmanaged(raw) for name, raw in batch.items()}, tmp_path)
        for name, theirs in shown.items():
            try:
                ours = full_pixels(files[name])
            except Refusal:
                refused += 1
                continue
            compared += 1
            if ours.shape != theirs.shape or np.abs(theirs.astype(int) - ours).mean() > 2:
                differ.add(Path(name).name)
    print(f"{compared} compared, {len(differ)} differ; {refused} are shown by the browser and refused by us")
    assert differ <= known
    assert compared > 800
    assert len(differ) / compared < 0.03
    assert refused < 0.05 * compared
