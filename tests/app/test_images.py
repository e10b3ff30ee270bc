"""What image files of every kind come to as 8-bit RGB, and which are refused."""

import io

import numpy as np
import pytest
import torch

from fastmix.app import data
from fastmix.app.console import CommandError
from fastmix.app.data import inspection
from fastmix.app.data.images import BACKGROUND, read_image

PIL = pytest.importorskip("PIL.Image")
features = pytest.importorskip("PIL.features")
ORIENTATION = 0x0112

SIDE = 16
GREY = np.add.outer(np.arange(SIDE) * 15, np.arange(SIDE)).astype(np.uint8)  # 0 to 240
GREY[0, -1] = 255


def saved(path, values, mode=None, **options):
    """An image file of these values."""
    picture = values if isinstance(values, PIL.Image) else PIL.fromarray(values)
    if mode is not None:
        picture = picture.convert(mode)
    picture.save(path, **options)
    return path


def read(path):
    """(H, W, 3) uint8 of a file, which has SIDE x SIDE pixels."""
    return read_image(path, SIDE).permute(1, 2, 0).numpy()


def assert_reads(path, grey, off=0):
    seen = read(path).astype(int)
    assert np.abs(seen - np.asarray(grey, dtype=int)[..., None]).max() <= off


def tiff(path, values, **tags):
    """A TIFF file with one uncompressed strip: also of types that Pillow does not write. tags: of the file."""
    h, w = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    order = "<" if values.dtype.byteorder in "<=|" else ">"
    entries = {256: w, 257: h, 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 0, 277: 1, 278: h, 279: values.nbytes,
               339: kind} | {int(tag[1:]): value for tag, value in tags.items()}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    number = np.dtype(f"{order}u4")
    head = (b"II*\0" if order == "<" else b"MM\0*") + np.array(8, number).tobytes()
    body = np.array(len(entries), f"{order}u2").tobytes()
    for tag, value in sorted(entries.items()):
        body += np.array([tag, 4], f"{order}u2").tobytes() + np.array([1, value], number).tobytes()
    path.write_bytes(head + body + bytes(4) + values.tobytes())
    return path


WIDE = GREY.astype(np.uint16) * 257


@pytest.mark.parametrize(("name", "values"), [
    ("16.png", WIDE), ("16.tif", WIDE), ("16b.tif", WIDE.astype(">u2")),
    ("float.tif", (GREY / 255).astype(np.float32)), ("pgm16.pgm", WIDE)])
def test_values_of_more_than_8_bits_are_scaled_by_the_range_of_their_type(tmp_path, name, values):
    assert_reads(saved(tmp_path / name, values), GREY)


@pytest.mark.parametrize(("kind", "largest"), [
    ("|i1", 127), ("<u2", 2**16 - 1), (">u2", 2**16 - 1), ("<i2", 2**15 - 1), (">i2", 2**15 - 1), ("<u4", 2**32 - 1),
    ("<i4", 2**31 - 1), (">i4", 2**31 - 1), ("<f4", 1), (">f4", 1)])
def test_every_type_of_a_tiff(tmp_path, kind, largest):
    values = (GREY.astype(np.float64) / 255 * largest)
    values = values.astype(kind) if kind[1] == "f" else values.round().astype(kind)
    assert_reads(tiff(tmp_path / "a.tif", values), GREY, kind == "|i1")


@pytest.mark.parametrize("kind", ["<u2", "<f4"])
def test_a_tiff_whose_zero_is_white(tmp_path, kind):
    values = (GREY / 255).astype(kind) if kind == "<f4" else GREY.astype(kind) * 257
    assert_reads(tiff(tmp_path / "a.tif", values, t262=0), 255 - GREY.astype(int))


@pytest.mark.parametrize(("values", "message"), [
    (GREY.astype(np.float32), "holds floats from 0 to 255, want 0 to 1"),
    ((GREY / 255 - 0.5).astype(np.float32), "holds floats from -0.5 to 0.5, want 0 to 1"),
    (np.full((SIDE, SIDE), np.nan, np.float32), "holds floats from nan to nan"),
    (np.where(GREY > 9, 0.5, np.inf).astype(np.float32), "to inf, want 0 to 1"),
    (GREY.astype(np.int32), "holds 32-bit numbers up to 255, want up to 2147483647"),
    (GREY.astype(np.int32) - 100, "holds whole numbers from -100 to 155 with a sign, want 0 to 2147483647")])
def test_values_without_a_range_are_refused_in_one_line_with_the_file(tmp_path, values, message):
    path = saved(tmp_path / "a.tif", values)
    with pytest.raises(CommandError) as caught:
        read_image(path, SIDE)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value) and "\n" not in str(caught.value)
    assert message in inspection.inspect(str(path), False).damaged  # before the first epoch


def test_black_images_of_every_type_are_black(tmp_path):
    for kind in (np.uint8, np.uint16, np.int32, np.float32):
        assert_reads(saved(tmp_path / "a.tif", np.zeros((SIDE, SIDE), kind)), np.zeros((SIDE, SIDE)))


def hidden(alpha, under):
    """RGBA whose transparent pixels hide other colours."""
    values = np.zeros((SIDE, SIDE, 4), np.uint8)
    values[..., :3], values[..., 3] = (10, 20, 30), alpha
    values[alpha == 0, :3] = under
    return PIL.fromarray(values, "RGBA")


ALPHA = np.where(GREY > 100, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("under", [(0, 0, 0), (255, 0, 255)])
@pytest.mark.parametrize(("mode", "name"), [("RGBA", "a.png"), ("RGBA", "a.webp"), ("RGBA", "a.tif"), ("LA", "a.png"),
                                            ("P", "a.png"), ("RGBA", "a.gif")])
def test_transparent_pixels_are_the_background_whatever_they_hide(tmp_path, mode, name, under):
    if name.endswith("webp") and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    picture = hidden(ALPHA, under)
    if mode == "P":
        picture = picture.quantize(8)
    elif mode == "LA":
        picture = picture.convert("LA")
    seen = read(saved(tmp_path / name, picture, **({"lossless": True} if name.endswith("webp") else {})))
    assert BACKGROUND == (255, 255, 255)
    assert (seen[ALPHA == 0] == BACKGROUND).all()
    want = (19,) * 3 if mode == "LA" else (10, 20, 30)
    assert np.abs(seen[ALPHA == 255].astype(int) - want).max() <= 1


def test_pixels_that_are_half_transparent_are_mixed_with_the_background(tmp_path):
    seen = read(saved(tmp_path / "a.png", hidden(np.full((SIDE, SIDE), 128, np.uint8), (0, 0, 0))))
    want = [round((128 * value + 127 * 255) / 255) for value in (10, 20, 30)]
    assert np.abs(seen.astype(int) - want).max() <= 1


@pytest.mark.parametrize(("mode", "colour"), [("L", 40), ("RGB", (40, 50, 60)), ("I;16", 40 * 257), ("P", 3), ("1", 0)])
def test_a_colour_that_is_declared_transparent(tmp_path, mode, colour):
    """A png's tRNS."""
    picture = PIL.new(mode, (SIDE, SIDE), colour)
    if mode == "P":
        picture.putpalette([c for i in range(256) for c in (i, i, i)])
    picture.putpixel((0, 0), 255 if mode in ("L", "1", "P") else 65535 if mode == "I;16" else (1, 2, 3))
    seen = read(saved(tmp_path / "a.png", picture, transparency=colour))
    assert (seen[1:] == 255).all()
    assert (seen[0, 0] == ((1, 2, 3) if mode == "RGB" else 255)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_other_modes_look_as_they_do(tmp_path, mode):
    picture = PIL.new("RGB", (SIDE, SIDE), (255, 255, 255) if mode == "1" else (200, 200, 200))
    picture = picture.quantize() if mode == "P" else picture.convert(mode)
    name = "a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"
    assert np.abs(read(saved(tmp_path / name, picture)).astype(int) - (255 if mode == "1" else 200)).max() <= 3


QUARTERS = np.zeros((SIDE, SIDE, 3), np.uint8)
QUARTERS[:8, :8], QUARTERS[:8, 8:], QUARTERS[8:, :8] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
TURNED = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
          5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
          7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1], 8: lambda a: np.rot90(a)}


OPTIONS = {"jpg": lambda _: {"quality": 95, "subsampling": 0}, "png": lambda _: {},
           "webp": lambda _: {"lossless": True}, "tif": lambda orientation: {"tiffinfo": {274: orientation}}}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_as_their_exif_data_say(tmp_path, suffix, orientation):
    if suffix == "webp" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    exif = PIL.Exif()
    exif[ORIENTATION] = orientation
    path = saved(tmp_path / f"a.{suffix}", QUARTERS, exif=exif,
                 **OPTIONS[suffix](orientation))
    assert np.abs(read(path).astype(int) - TURNED[orientation](QUARTERS)).max() <= 60


def test_damaged_exif_data_and_other_packages_warnings_lose_no_picture(tmp_path, recwarn):
    path = saved(tmp_path / "a.jpg", QUARTERS, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read(path).shape == (SIDE, SIDE, 3)
    palette = saved(tmp_path / "p.png", hidden(ALPHA, (0, 0, 0)).quantize(8))
    read(palette)
    assert not [str(w.message) for w in recwarn if "PIL" in w.filename]


def test_boxes_are_those_of_the_upright_picture(tmp_path):
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            exif = PIL.Exif()
            exif[ORIENTATION] = 6
            saved(tmp_path / part / name / "1.jpg", np.zeros((20, 40, 3), np.uint8), exif=exif)  # upright 20 x 40
    lines = ["\ufefffile,top,left,height,width", "a/1.jpg,10,0,20,20", "b/1.jpg,0,0,40,20", ""]
    (tmp_path / "test" / "boxes.csv").write_text("\n".join(lines), encoding="utf-8")
    boxes = data.load("folder", str(tmp_path), 20).test_boxes()
    assert [box.tolist() for box in boxes] == [[[0, 0, 20, 20]], [[0, 0, 20, 20]]]


@pytest.mark.parametrize(("content", "message"), [
    (b"", "the file is empty"), (b"no image", "of no kind that Pillow knows"), (b"\x89PNG\r\n\x1a\n", "a.png")])
def test_files_that_are_no_images(tmp_path, content, message):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(CommandError) as caught:
        read_image(path, 8)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_picture_that_is_too_large_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", QUARTERS)
    monkeypatch.setattr(PIL, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(CommandError, match=r"a\.png cannot be read as an image \(more pixels"):
        read_image(path, 8)


FORMATS = {"jpg": {}, "png": {}, "gif": {}, "bmp": {}, "ppm": {}, "tif": {}, "webp": {"lossless": True},
           "tiff": {"compression": "tiff_lzw"}}


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_that_were_cut_off_are_found_by_the_headers(tmp_path, suffix):
    if suffix == "webp" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    rng = np.random.default_rng(0)
    path = saved(tmp_path / f"a.{suffix}", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), **FORMATS[suffix])
    found = inspection.inspect(str(path), False)
    assert found.size == (64, 64) and found.damaged is None
    content = path.read_bytes()
    for length in (20, len(content) // 2, len(content) - 40):
        path.write_bytes(content[:length])
        damaged = inspection.inspect(str(path), False).damaged
        assert damaged is not None and str(path) in damaged and "\n" not in damaged
    path.write_bytes(content + b"\0\0 of another tool")  # bytes behind the end do no harm
    assert inspection.inspect(str(path), False).damaged is None


def test_damage_in_the_middle_is_found_by_the_full_check(tmp_path):
    path = saved(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert inspection.inspect(str(path), False).damaged is None
    assert "a.png" in inspection.inspect(str(path), True).damaged


def test_several_pictures_in_a_file_are_counted(tmp_path):
    first, second = (PIL.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    for name in ("a.tif", "a.gif"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert inspection.inspect(str(tmp_path / name), False).pictures == 2
        assert (read_image(tmp_path / name, 8)[:, 0, 0] == torch.tensor([255, 0, 0])).all()


def test_a_plain_photograph_is_read_as_ever(tmp_path):
    """The pixels of 8-bit RGB are those of Pillow, bit for bit."""
    buffer = io.BytesIO()
    PIL.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    want = PIL.open(tmp_path / "a.jpg").convert("RGB").resize((20, 20), PIL.Resampling.BILINEAR)
    assert np.array_equal(read_image(tmp_path / "a.jpg", 20).permute(1, 2, 0).numpy(), np.asarray(want))


