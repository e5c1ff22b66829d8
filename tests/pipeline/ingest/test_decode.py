"""The decode rules, one picture each; and the bounds that hostile bytes meet."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest.decode import Decoded, canonical, full_pixels
from pipeline.ingest.decode import decoded as picture_of
from pipeline.ingest.refusals import Refusal

Encode = Callable[..., bytes]


def decoded(raw: bytes, side: int = 288) -> Decoded:
    return canonical(raw, side, 95)


def pixels(raw: bytes) -> np.ndarray:
    """Canonical pixels (H, W, 3) float64, as the stored JPEG gives them."""
    image = Image.open(io.BytesIO(decoded(raw).jpeg))
    assert image.mode == "RGB"
    return np.asarray(image, np.float64)


def refusal(raw: bytes, **bounds: int) -> Refusal:
    with pytest.raises(Refusal) as caught:
        canonical(raw, 288, 90, **bounds)
    return caught.value


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def test_a_large_picture_is_shrunk_to_the_side_and_a_small_one_keeps_its_size(picture: Encode) -> None:
    large, small = decoded(picture(size=(900, 600)), side=96), decoded(picture(size=(33, 20)), side=96)
    assert (large.width, large.height) == (144, 96)
    assert (small.width, small.height) == (33, 20)
    assert Image.open(io.BytesIO(large.jpeg)).size == (144, 96)


def test_a_photo_decoded_at_a_fraction_looks_like_one_decoded_whole(encode: Encode) -> None:
    y, x = np.mgrid[0:1200, 0:1600]
    waves = np.stack([128 + 100 * np.sin(x / 60), 128 + 100 * np.cos(y / 80), 128 + 100 * np.sin((x + y) / 90)], axis=2)
    photo = Image.fromarray(waves.astype(np.uint8))
    exact = np.asarray(photo.resize((128, 96), Image.Resampling.LANCZOS), np.float64)
    for raw in (encode(photo, "JPEG", quality=95), encode(photo, "PNG")):
        image = np.asarray(Image.open(io.BytesIO(decoded(raw, side=96).jpeg)), np.float64)
        assert np.abs(image - exact).mean() < 3


@pytest.mark.parametrize(("side", "sampling"), [(127, (1, 1)), (128, (2, 2))])
def test_colour_is_subsampled_from_128_pixels_on(picture: Encode, side: int, sampling: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(decoded(picture(size=(side, side))).jpeg))
    assert image.layer[0][1:3] == sampling


def test_the_same_pixels_have_the_same_hash_in_any_container_and_other_shapes_another(encode: Encode) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    hashes = {decoded(encode(image, format)).pixels for format in ("PNG", "BMP", "TIFF")}
    assert len(hashes) == 1
    black = {decoded(encode(Image.new("RGB", size))).pixels for size in ((20, 30), (30, 20))}
    assert len(black) == 2


def test_nothing_but_pixels_is_stored(encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret description"
    options = {"exif": exif, "comment": b"secret comment", "icc_profile": b"secret profile"}
    jpeg = decoded(encode(Image.new("RGB", (20, 20)), "JPEG", **options)).jpeg
    assert b"secret" not in jpeg


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(encode: Encode, format: str, orientation: int) -> None:
    upright = Image.new("RGB", (32, 48), "blue")
    upright.paste("red", (0, 0, 32, 24))
    upright.paste("white", (0, 0, 16, 24))  # top left white, top right red, bottom blue
    turn_back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Transpose values that undo each orientation
    stored = upright.transpose(Image.Transpose(turn_back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pixels(encode(stored, format, exif=exif))
    assert got.shape == (48, 32, 3)
    assert got[10, 5].min() > 200
    assert got[10, 26, 0] > 200
    assert got[10, 26, 2] < 60
    assert got[40, 16, 2] > 200


def test_sixteen_bit_gray_keeps_its_tones(encode: Encode) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    assert np.abs(pixels(encode(Image.fromarray(ramp))) - (ramp / 257)[..., None]).mean() < 2


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_wide_ranges_are_scaled_to_what_can_be_seen(encode: Encode, kind: type) -> None:
    ramp = np.linspace(-5000, 90000, 32 * 32).reshape(32, 32).astype(kind)
    expected = np.linspace(0, 255, 32 * 32).reshape(32, 32, 1)
    assert np.abs(pixels(encode(Image.fromarray(ramp), "TIFF")) - expected).mean() < 2


def test_a_float_picture_ignores_what_is_not_finite_and_without_a_range_is_blank(encode: Encode) -> None:
    ramp = np.linspace(0, 1, 32 * 32).reshape(32, 32).astype(np.float32)
    ramp[0, 0], ramp[0, 1] = np.nan, np.inf
    assert 120 < pixels(encode(Image.fromarray(ramp), "TIFF")).mean() < 135
    for empty in (np.ones_like(ramp), np.full_like(ramp, np.nan)):
        assert refusal(encode(Image.fromarray(empty), "TIFF")).reason == "blank"


def test_what_is_transparent_is_white(encode: Encode) -> None:
    clear_red = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    half_black = Image.new("LA", (20, 20), (0, 128))
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert pixels(encode(clear_red)).min() > 250
    assert np.abs(pixels(encode(half_black)) - 127).max() < 4
    assert pixels(encode(palette, transparency=1)).min() > 250
    assert pixels(encode(palette))[..., 1].max() < 5  # the same without transparency is red


def test_cmyk_becomes_rgb(encode: Encode) -> None:
    cyan = pixels(encode(Image.new("CMYK", (20, 20), (255, 0, 0, 0)), "JPEG"))
    assert cyan[..., 0].max() < 10
    assert cyan[..., 1:].min() > 245


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_kept(encode: Encode, format: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    got = pixels(encode(frames[0], format, save_all=True, append_images=frames[1:]))
    assert got[..., 0].min() > 200
    assert got[..., 1:].max() < 60


def test_flags_and_natural_size_tell_what_came(encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = Image.new("RGB", (40, 30), "red")
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green")]
    told = {
        encode(rgb): (),
        encode(rgb, "TIFF", exif=exif): ("rotated",),
        encode(rgb, "JPEG", exif=exif): ("rotated",),
        encode(rgb.convert("RGBA")): ("alpha",),
        encode(rgb.convert("LA")): ("alpha", "gray"),
        encode(rgb.convert("L"), "JPEG"): ("gray",),
        encode(rgb.convert("1"), "TIFF"): ("gray",),
        encode(rgb.convert("CMYK"), "JPEG"): ("cmyk",),
        encode(rgb.quantize(4)): ("palette",),
        encode(rgb, "JPEG", icc_profile=b"profile"): ("icc",),
        encode(Image.new("I;16", (40, 30), 7)): ("gray", "gray16"),
        encode(Image.linear_gradient("L").convert("F"), "TIFF"): ("gray", "float"),
        encode(frames[0], "GIF", save_all=True, append_images=frames[1:]): ("multi_frame", "palette"),
        encode(frames[0], "PNG", save_all=True, append_images=frames[1:]): ("multi_frame",),
        encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]): ("multi_frame",),
        encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]): ("multi_frame",),
        encode(frames[0], "MPO", save_all=True, append_images=frames[1:]): ("multi_frame",),
    }
    for raw, flags in told.items():
        got = picture_of(raw, 16)
        assert got.flags == flags
        assert got.format == ("JPEG" if raw.startswith(b"\xff\xd8") else Image.open(io.BytesIO(raw)).format)
        natural = (30, 40) if "rotated" in flags else (256, 256) if "float" in flags else (40, 30)
        assert (got.width, got.height) == natural
        assert min(got.rgb.size) == 16
        assert full_pixels(raw).shape == (natural[1], natural[0], 3)


def test_full_pixels_are_those_of_the_file_whatever_its_size(picture: Encode) -> None:
    raw = picture(size=(1300, 1200))
    assert (full_pixels(raw) == np.asarray(Image.open(io.BytesIO(raw)))).all()
    with pytest.raises(Refusal, match="pixels_over_cap"):
        full_pixels(raw, max_pixels=10**6)


def test_damage_behind_the_pixels_of_a_png_is_forgiven_and_damage_in_them_is_not(picture: Encode) -> None:
    whole = picture(format="PNG")
    for harmless in (whole[:-12], whole[:-6], whole[:-12] + b"\0\0\1\0tEXtcut", whole[:-12] + b"rubbish" * 9):
        assert decoded(harmless).pixels == decoded(whole).pixels
    middle = len(whole) // 2
    for harmful in (whole[:-40], whole[:middle], whole[:middle] + b"\0\1\2\3" + whole[middle + 4 :]):
        assert refusal(harmful).reason == "decode_failed"


@pytest.mark.parametrize("size", [(60, 40), (2400, 1600)])  # the larger is decoded at a fraction
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.95, 0.999])
def test_a_truncated_picture_is_refused(
    picture: Encode, size: tuple[int, int], progressive: bool, share: float
) -> None:
    whole = picture(size=size, progressive=progressive)
    assert refusal(whole[: int(len(whole) * share) - 4]).reason == "decode_failed"


@pytest.mark.parametrize(
    "raw",
    [
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n(x) print\nshowpage\n%%EOF\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="50" height="50"></svg>',
        b"%PDF-1.4\n",
        b"P6\n20 20\n255\n" + bytes(1200),  # a picture, of a format that is not let in
        b"hello",
    ],
)
def test_other_formats_are_refused_whatever_their_name(raw: bytes) -> None:
    assert refusal(raw).reason == "format_forbidden"


@pytest.mark.parametrize("raw", [b"", b"\xff\xd8\xff\xe0garbage", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM" + bytes(40)])
def test_a_broken_header_is_refused_and_its_detail_is_the_same_each_time(raw: bytes) -> None:
    first, second = refusal(raw), refusal(raw)
    assert first.reason == "header_bad"
    assert first.detail == second.detail


@pytest.mark.parametrize("size", [(7100, 7100), (10_000, 10_000), (14_000, 14_000), (100_000, 100_000)])
def test_a_pixel_bomb_is_refused_from_its_header(size: tuple[int, int]) -> None:
    assert refusal(png_header(*size)).reason == "pixels_over_cap"


def test_bounds_are_the_callers(picture: Encode) -> None:
    assert refusal(picture(size=(40, 7))).reason == "side_under_min"
    assert refusal(picture(size=(40, 30)), min_side=31).reason == "side_under_min"
    assert refusal(picture(size=(40, 30)), max_pixels=1199).reason == "pixels_over_cap"
    assert refusal(png_header(70_000, 8)).reason == "decode_failed"


def test_a_strip_longer_than_a_jpeg_can_be_is_refused(encode: Encode) -> None:
    assert refusal(encode(Image.new("L", (66_000, 8)))).reason == "aspect_over_max"
