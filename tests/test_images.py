"""Images of every mode of Pillow: converted by their own scale, or refused by the file's name."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.faces.image_io import read_image, read_images
from adjointdeis.images import ImageError, open_rgb, to_rgb
from adjointdeis.morphing.precomputed import Precomputed

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (16, 1))
COLOUR = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)], axis=-1)


def read(image: Image.Image, path: Path, **options) -> np.ndarray:
    image.save(path, **options)
    return read_image(path)


def far(found: np.ndarray, wanted: np.ndarray) -> int:
    assert found.dtype == np.uint8 and found.shape[2] == 3
    wanted = np.broadcast_to(wanted if wanted.ndim == 3 else wanted[..., None], found.shape)
    return int(np.abs(found.astype(int) - wanted.astype(int)).max())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_is_scaled(suffix, order, tmp_path) -> None:
    wide = Image.fromarray((RAMP.astype(np.uint16) * 257).astype(order))
    assert far(read(wide, tmp_path / f"x{suffix}"), RAMP) == 0


def test_inverted_tiff_by_its_tag(tmp_path) -> None:
    path = tmp_path / "x.tif"
    wide = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert far(read(wide, path, tiffinfo={262: 0}), 255 - RAMP) == 0
    assert far(read(Image.fromarray(RAMP), path), RAMP) == 0


def test_16_bit_colour(tmp_path) -> None:
    rows = [b"\0" + row.astype(">u2").tobytes() for row in COLOUR.astype(np.uint16) * 257]
    header = np.array([COLOUR.shape[1], COLOUR.shape[0]], ">u4").tobytes() + b"\x10\2\0\0\0"
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")):
        check = zlib.crc32(kind + body).to_bytes(4, "big")
        data += len(body).to_bytes(4, "big") + kind + body + check
    (tmp_path / "x.png").write_bytes(data)
    assert far(read_image(tmp_path / "x.png"), COLOUR) == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV"])
def test_opaque_modes_keep_their_colours(mode) -> None:
    image = Image.fromarray(COLOUR)
    grey = np.asarray(image.convert("L"))
    wanted = {"1": np.asarray(image.convert("1")) * np.uint8(255), "L": grey}.get(mode, COLOUR)
    changed = image.quantize(256) if mode == "P" else image.convert(mode)
    assert far(np.array(to_rgb(changed)), wanted) <= {"P": 8, "YCbCr": 3, "HSV": 6}.get(mode, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_alpha_is_composited_on_white(mode) -> None:
    alpha = np.where(np.arange(64) < 32, 0, 128).astype(np.uint8)[None].repeat(16, 0)
    opaque = Image.fromarray(COLOUR)
    if mode in ("LA", "La"):
        opaque = opaque.convert("L")
    if mode == "PA":
        opaque = opaque.quantize(256).convert("PA")
    base = np.asarray(opaque.convert("RGB")).astype(float)
    opaque.putalpha(Image.fromarray(alpha))
    image = opaque.convert(mode)
    assert image.mode == mode
    wanted = np.rint(255 + (base - 255) * alpha[..., None] / 255)
    assert far(np.array(to_rgb(image)), wanted) <= 2


@pytest.mark.parametrize(("kind", "clear"), [("RGB", (0, 252, 90)), ("L", 0), ("P", 0)])
def test_a_transparent_colour_is_transparent(kind, clear, tmp_path) -> None:
    image = Image.fromarray(COLOUR if kind == "RGB" else RAMP)
    if kind == "P":
        image = image.convert("P")
    found = read(image, tmp_path / "x.png", transparency=clear)
    assert (found[:, 0] == 255).all()
    assert far(found[:, 1:], np.array(image.convert("RGB"))[:, 1:]) == 0


def test_what_is_transparent_everywhere_shows_no_face(tmp_path) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"x\.png.*transparent everywhere"):
        read_image(tmp_path / "x.png")


def test_cmyk_without_a_profile_and_lab(tmp_path) -> None:
    ink = Image.fromarray(255 - COLOUR)
    cmyk = Image.merge("CMYK", [*ink.split(), Image.new("L", ink.size, 0)])
    for name in ("x.tif", "x.jpg"):
        options = {"quality": 100, "subsampling": 0} if name == "x.jpg" else {}
        assert far(read(cmyk, tmp_path / name, **options), COLOUR) <= 6
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.fromarray(COLOUR), *profiles, outputMode="LAB")
    again = ImageCms.profileToProfile(lab, *profiles[::-1], outputMode="RGB")
    assert far(read(lab, tmp_path / "lab.tif"), np.array(again)) <= 2


def test_cmyk_whose_profile_cannot_be_read_is_refused(tmp_path) -> None:
    path = tmp_path / "x.tif"
    Image.new("CMYK", (8, 8)).save(path, icc_profile=b"no profile at all" * 20)
    with pytest.raises(ImageError, match=r"x\.tif"):
        read_image(path)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_floats_and_wide_integers_are_refused(mode, tmp_path) -> None:
    Image.fromarray(RAMP).convert(mode).save(tmp_path / "x.tif")
    with pytest.raises(ImageError, match=rf"x\.tif.*mode {mode}"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientation_turns_every_mode_upright(mode, suffix, tmp_path) -> None:
    array = RAMP.astype(np.uint16) * 257 if mode == "I;16" else COLOUR
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.rot90(RAMP if mode == "I;16" else COLOUR, -1)
    assert far(read(Image.fromarray(array), tmp_path / f"x{suffix}", exif=exif), upright) == 0


@pytest.mark.parametrize(
    "data",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a" + b"\0" * 40, b"", b"x"],
)
def test_other_formats_are_refused_whatever_their_name(data, tmp_path) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.png: not a readable image, of none of"):
        open_rgb(tmp_path / "x.png")


def test_truncated_damaged_and_several_pictures(tmp_path) -> None:
    whole = io.BytesIO()
    Image.fromarray(COLOUR).save(whole, "PNG")
    data = whole.getvalue()
    for name, broken in (
        ("cut.png", data[: len(data) // 2]),
        ("damaged.png", data[:20] + b"\0\0\0\0" + data[24:]),
    ):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ImageError, match=name):
            open_rgb(tmp_path / name)
    first = Image.fromarray(COLOUR)
    first.save(tmp_path / "two.tif", save_all=True, append_images=[first])
    with pytest.raises(ImageError, match=r"two\.tif.*2 pictures"):
        open_rgb(tmp_path / "two.tif")


def test_a_text_beyond_the_limit_is_named(tmp_path) -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", " " * 1_500_000, zip=True)
    Image.fromarray(COLOUR).save(tmp_path / "xmp.png", pnginfo=info)
    with pytest.raises(ImageError, match=r"xmp\.png"):
        open_rgb(tmp_path / "xmp.png")


def test_all_that_cannot_be_read_are_told_of_together(tmp_path) -> None:
    """Before the first morph: a folder of a thousand pictures was told of one at a time."""
    paths = [tmp_path / f"{k:03d}_{k + 1:03d}.png" for k in range(9)]
    for path in paths:
        Image.fromarray(COLOUR).save(path)
    assert read_images(paths, np.shape) == [COLOUR.shape] * 9
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    with pytest.raises(ImageError, match=r"^\S*003_004\.png: not a readable"):
        read_images(paths)
    for path in paths[1:8]:
        path.write_bytes(b"not a picture")
    paths[2].unlink()
    with pytest.raises(ImageError, match=r"^7 of 9 .*001_002.*002_003.png: no such.*; and 2 more$"):
        read_images(paths)
    morphs = Precomputed(name="m", folder=str(tmp_path))
    with pytest.raises(ImageError, match=r"^6 of 8 images cannot be read: .*; and 1 more$"):
        morphs.image(MorphPair("000", "001"), (16, 64))
