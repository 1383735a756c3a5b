"""The one place where images of others are opened: formats by content, every mode to RGB.

A picture of an unusual kind must never change without a word: Pillow's own conversion clips 16-bit
grey to white, drops alpha and reads floats as bytes. Here every mode is converted to 8-bit RGB by
its own scale, or refused by the file's name.

* Transparency is composited on white, the background of a portrait.
* 16-bit grey is divided by 257, 12-bit grey by its own white; Pillow itself reads 16-bit colour.
* CMYK with a colour profile, and CIELAB, go through LittleCMS to sRGB; CMYK without one is taken
  as complements, R = (1 - C)(1 - K). Profiles of RGB images are not applied, as face recognisers
  are not trained on corrected colours either.
* Floats, 32-bit integers and files of several pictures have no single reading and are refused.
"""

import io
from pathlib import Path
from zipfile import Path as ZipPath

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from adjointdeis.files import read_bytes

FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""What is looked for in a file, whatever its name says: others would start other programs, as
PostScript named .png would start Ghostscript."""

LARGEST = 2**28
"""Bytes of the largest image file."""
MOST_PIXELS = 2**26
"""Pixels of the largest image: a file of a few hundred bytes can say that it has more."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
BACKGROUND = (255, 255, 255)
_PHOTOMETRIC, _BITS, _WHITE_IS_ZERO = 262, 258, 0

AnyPath = Path | ZipPath
"""A file on disk or a member of a zip archive; both offer `read_bytes`, `name`, `iterdir`."""


class ImageError(ValueError):
    """The file is not an image that can be read rightly; the message names it."""


def open_rgb(path: AnyPath) -> Image.Image:
    """An image file as 8-bit RGB, upright by its EXIF orientation.

    Args:
        path: A file, or a `zipfile.Path` inside an archive.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: Not one of `FORMATS`, truncated or damaged, or of a kind without one reading.
    """
    if not path.is_file():
        raise FileNotFoundError(f"image {path}: no such file")
    data = read_bytes(path, ImageError, LARGEST)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ImageError(f"it has more than {MOST_PIXELS // 10**6} million pixels")
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise ImageError(f"it holds {image.n_frames} pictures; save the one to use alone")  # type: ignore[attr-defined]
            image.load()
            return to_rgb(ImageOps.exif_transpose(_grey16(image)))
    except UnidentifiedImageError:
        raise ImageError(
            f"{path}: not a readable image, of none of the formats {', '.join(FORMATS)} by its "
            "content"
        ) from None
    # Decoders raise whatever a damaged file brings about: ValueError for text beyond a limit,
    # SyntaxError for a broken chunk, struct.error, and the error of decompression bombs.
    except Exception as error:
        raise ImageError(
            f"{path}: not a readable image ({error or type(error).__name__}); save it again as "
            "8-bit RGB, PNG or JPEG"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as 8-bit RGB, see the module.

    Raises:
        ImageError: A mode without one reading; without the file's name, which `open_rgb` adds.
    """
    mode = image.mode
    if mode.startswith("I;16"):
        image, mode = _grey16(image), "L"
    if mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _composited(image)
    if mode in ("CMYK", "LAB"):
        return _by_profile(image)
    if mode in ("1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise ImageError(f"its pixels are of mode {mode}, which has no agreed black and white")


def _grey16(image: Image.Image) -> Image.Image:
    """16- and 12-bit grey as 8 bits; any other mode as it is."""
    if not image.mode.startswith("I;16"):
        return image
    tags = getattr(image, "tag_v2", {})
    white = 2 ** int(np.ravel(tags.get(_BITS, 16))[0]) - 1
    values, clear = np.asarray(image), image.info.get("transparency")
    # By a table: floating-point numbers would take eight times the memory of the image.
    shades = np.arange(2**16, dtype=np.float64)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shades = white - shades
    grey = np.rint(shades * (255 / white)).astype(np.uint8)[values.astype(np.uint16, copy=False)]
    if isinstance(clear, int):
        grey[values == clear] = BACKGROUND[0]
    found = Image.fromarray(grey)
    # Orientation travels in what the file says beside its pixels.
    found.info = {k: v for k, v in image.info.items() if k != "transparency"}
    if orientation := image.getexif().get(0x0112):
        found.getexif()[0x0112] = orientation
    return found


def _composited(image: Image.Image) -> Image.Image:
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    clear = image.convert("RGBA")
    if not np.asarray(clear.getchannel("A")).any():
        raise ImageError("it is transparent everywhere")
    behind = Image.new("RGBA", clear.size, (*BACKGROUND, 255))
    return Image.alpha_composite(behind, clear).convert("RGB")


def _by_profile(image: Image.Image) -> Image.Image:
    stated = image.info.get("icc_profile")
    source = ImageCms.createProfile("LAB")
    if image.mode == "CMYK":
        if not stated:
            return image.convert("RGB")
        source = ImageCms.ImageCmsProfile(io.BytesIO(stated))
    found = ImageCms.profileToProfile(
        image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert found is not None
    return found
