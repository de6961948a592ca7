"""Reading images of any format, and refusing those that cannot be used."""

import io
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tagmask.data import images as images_module
from tagmask.data.image_files import ImageFiles
from tagmask.data.images import check_aspect_ratio, image_size, read_grey, read_image, read_mask_image
from tagmask.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_png_is_read_without_loss(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", Image.fromarray(RGB))), RGB)


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".tif", ".webp", ".png"])
def test_other_lossless_formats(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a{suffix}", Image.fromarray(RGB), **options)), RGB)


@pytest.mark.parametrize("name", ["a::b.png", "~a.png", "a b.png", "猫 🐈.png", "<script>.png", "a*[1].png", "#1?.png"])
def test_unusual_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path(name), Image.fromarray(RGB))
    np.testing.assert_array_equal(read_image(name), RGB)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    red = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    pixels = read_image(save(tmp_path / "a.jpg", red, quality=100)).astype(int)
    assert pixels.shape == (3, 4, 3)
    assert np.abs(pixels - [255, 0, 0]).max() <= 3


def test_sixteen_bit_values_are_stretched_to_the_full_range(tmp_path: Path) -> None:
    values = np.array([[1000, 2000, 3000]], np.uint16)
    pixels = read_image(save(tmp_path / "a.png", Image.fromarray(values)))
    assert pixels[0].tolist() == [[0, 0, 0], [127, 127, 127], [255, 255, 255]]


def test_float_images_with_nan_and_infinity(tmp_path: Path) -> None:
    values = np.array([[np.nan, 0.0, 1.0, np.inf]], np.float32)
    assert read_image(save(tmp_path / "a.tif", Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 255, 0]


def test_palette_images_have_their_colors(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert read_image(save(tmp_path / "a.png", image))[0].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], np.uint8)
    assert read_image(save(tmp_path / "a.png", Image.fromarray(rgba)))[0].tolist() == [[255] * 3, [10, 20, 30]]


def test_bilevel_and_grey(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "a.png", Image.new("1", (2, 1), 1))).tolist() == [[[255] * 3] * 2]
    assert read_image(save(tmp_path / "b.png", Image.new("L", (1, 1), 7))).tolist() == [[[7] * 3]]


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(tmp_path / f"a{suffix}")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(RGB).save(path, exif=exif, **options)
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), upright)
    assert image_size(path) == upright.shape[:2]
    if orientation == 6:  # known by hand: the first row of the file is the last column
        np.testing.assert_array_equal(read_image(path)[:, -1], RGB[0])


def test_image_of_one_pixel(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (1, 1), (1, 2, 3)))
    assert read_image(path).tolist() == [[[1, 2, 3]]]
    assert image_size(path) == (1, 1)


def test_huge_image_is_refused_without_decoding(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match=r"a\.png has more than 100 million pixels; make it smaller"):
        read_image(path)
    near = save(tmp_path / "b.png", Image.new("1", (11_000, 10_000)))
    with pytest.raises(DataError, match=r"b\.png has 11000×10000 pixels, more than 100 million; make it smaller"):
        read_image(near)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\); replace or remove it"),
        (b"no image at all", "is not an image that can be read; replace or remove it"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "; replace or remove it"),
    ],
)
def test_files_that_are_not_images(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jpg .*{message}"):
        read_image(tmp_path / "a.jpg")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jpg does not exist"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="is a folder, not a file"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", Image.fromarray(RGB))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"is damaged|is not an image"):
        read_image(path)


def test_damaged_exif_data_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    Image.fromarray(RGB).save(path, lossless=True, exif=b"Exif\0\0MM\0\2garbage")
    np.testing.assert_array_equal(read_image(path), RGB)


def test_unreadable_exif_data_does_not_undo_the_rotation(tmp_path: Path) -> None:
    """The orientation is intact, but the EXIF data ends too early."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x03\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    path = save(tmp_path / "a.png", Image.fromarray(RGB), exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB, -1))
    assert image_size(path) == (30, 20)


def test_importing_and_reading_change_no_warning_filters(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB))
    code = (
        "import warnings, numpy, PIL.Image; before = list(warnings.filters); "
        f"from tagmask.data.images import read_image; read_image({str(path)!r}); assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def small_files() -> list[bytes]:
    """Return the bytes of small image files in several formats, with EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
        buffer = io.BytesIO()
        Image.fromarray(RGB).save(buffer, kind, exif=exif)
        files.append(buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray(RGB[..., 0].astype(np.uint16) * 200).save(buffer, "PNG")
    return [*files, buffer.getvalue()]


SMALL_FILES = small_files()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SMALL_FILES), st.data())
def test_every_damage_is_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, file: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(file[: data.draw(st.integers(1, len(file)))] if data.draw(st.booleans()) else file)
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    messages, results = [], {}
    for read in (read_image, image_size, read_mask_image, read_grey):
        try:
            results[read] = read(path)
        except DataError as error:
            messages.append(str(error))
    assert all(str(path) in message and ";" in message for message in messages)
    if read_image in results:
        assert results[read_image].shape[:2] == results[image_size]


@pytest.mark.parametrize("file", SMALL_FILES[:4], ids=["jpeg", "png", "webp", "tiff"])
def test_damaged_exif_data_gives_the_same_size_with_and_without_pixels(tmp_path: Path, file: bytes) -> None:
    path = tmp_path / "damaged"
    start = max(file.find(b"MM\0*"), file.find(b"II*\0"))
    for position in range(start, min(start + 40, len(file))):
        for value in (0, 1, 3, 8, 0x12, 0xFF):
            path.write_bytes(file[:position] + bytes([value]) + file[position + 1 :])
            try:
                shape = read_image(path).shape[:2]
            except DataError:
                continue
            assert image_size(path) == shape


def test_libtiff_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(RGB), compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    for start in range(8, len(content), 40):
        path.write_bytes(content[:start] + bytes(20) + content[start + 20 :])
        with suppress(DataError):
            read_image(path)
    assert capfd.readouterr() == ("", "")


def test_messages_do_not_repeat_long_names(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ImageFiles(tmp_path).find("x" * 5000)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "a.HEIC"
    pillow_heif.from_pillow(Image.fromarray(np.full((64, 48, 3), 200, np.uint8))).save(path)
    assert read_image(path).shape == (64, 48, 3)
    assert image_size(path) == (64, 48)
    assert ImageFiles(tmp_path).names == ["a.HEIC"]
    monkeypatch.setattr(images_module, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"a\.HEIC is a HEIC image; install .* \"tagmask\[heic\]\", or convert it to JPEG"
    ):
        read_image(path)


def test_mask_ids_of_indexed_and_grey_images(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255]], np.uint8)
    image = Image.fromarray(ids)
    np.testing.assert_array_equal(read_mask_image(save(tmp_path / "grey.png", image)), ids)
    image.putpalette(list(range(256)) * 3)
    np.testing.assert_array_equal(read_mask_image(save(tmp_path / "palette.png", image)), ids)


def test_a_color_image_is_not_a_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png has the color mode RGB, so it is not a mask; save it as an indexed"):
        read_mask_image(save(tmp_path / "a.png", Image.fromarray(RGB)))


def test_grey_values_are_between_0_and_1(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(np.array([[0, 51, 255]], np.uint8)))
    np.testing.assert_allclose(read_grey(path), [[0, 0.2, 1]], atol=1e-7)


def test_png_header_with_an_impossible_size(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + bytes(4))
    with pytest.raises(DataError):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("size", "fits"),
    [((100, 200), True), ((50, 102), True), ((50, 103), False), ((3, 7), True), ((1, 2), True), ((200, 100), False)],
)
def test_a_map_must_have_the_aspect_ratio_of_its_image(size: tuple[int, int], fits: bool) -> None:
    """The tolerance is 2 %, or one pixel of the map if that is more."""
    if fits:
        check_aspect_ratio("a.png", size, (400, 800))
    else:
        sentence = rf"^a\.png has {size[1]}×{size[0]} pixels and its image 800×400; give both the same aspect ratio\.$"
        with pytest.raises(DataError, match=sentence):
            check_aspect_ratio("a.png", size, (400, 800))


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_large_images_that_are_allowed_give_no_warning_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns from 89 million pixels on; here from 100."""
    Image.new("RGB", (12, 10)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(tmp_path / "image.png").shape == (10, 12, 3)
    assert image_size(tmp_path / "image.png") == (10, 12)
