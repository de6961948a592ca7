import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tagmask.data.images import check_shape, image_size, read_grey, read_image, read_mask_image
from tagmask.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", Image.fromarray(RGB))), RGB)


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".tif", ".webp", ".png"])
def test_other_lossless_formats(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    np.testing.assert_array_equal(read_image(saved(tmp_path / f"a{suffix}", Image.fromarray(RGB), **options)), RGB)


@pytest.mark.parametrize("name", ["a::b.png", "~a.png", "a b.png", "猫 🐈.png", "<script>.png", "a*[1].png", "#1?.png"])
def test_odd_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    saved(Path(name), Image.fromarray(RGB))
    np.testing.assert_array_equal(read_image(name), RGB)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    red = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    pixels = read_image(saved(tmp_path / "a.jpg", red, quality=100)).astype(int)
    assert pixels.shape == (3, 4, 3)
    assert np.abs(pixels - [255, 0, 0]).max() <= 3


def test_sixteen_bits_are_stretched_to_their_range(tmp_path: Path) -> None:
    values = np.array([[1000, 2000, 3000]], np.uint16)
    pixels = read_image(saved(tmp_path / "a.png", Image.fromarray(values)))
    assert pixels[0].tolist() == [[0, 0, 0], [127, 127, 127], [255, 255, 255]]


def test_floats_with_no_number_among_them(tmp_path: Path) -> None:
    values = np.array([[np.nan, 0.0, 1.0, np.inf]], np.float32)
    assert read_image(saved(tmp_path / "a.tif", Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 255, 0]


def test_palette_shows_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert read_image(saved(tmp_path / "a.png", image))[0].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], np.uint8)
    assert read_image(saved(tmp_path / "a.png", Image.fromarray(rgba)))[0].tolist() == [[255] * 3, [10, 20, 30]]


def test_bilevel_and_grey(tmp_path: Path) -> None:
    assert read_image(saved(tmp_path / "a.png", Image.new("1", (2, 1), 1))).tolist() == [[[255] * 3] * 2]
    assert read_image(saved(tmp_path / "b.png", Image.new("L", (1, 1), 7))).tolist() == [[[7] * 3]]


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
    if orientation == 6:  # by hand: the first row of the file is the right-most column
        np.testing.assert_array_equal(read_image(path)[:, -1], RGB[0])


def test_one_pixel(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (1, 1), (1, 2, 3)))
    assert read_image(path).tolist() == [[[1, 2, 3]]]
    assert image_size(path) == (1, 1)


def test_huge_image_is_refused_without_decoding(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match=r"a\.png has more than 100 million pixels; make it smaller"):
        read_image(path)
    near = saved(tmp_path / "b.png", Image.new("1", (11_000, 10_000)))
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
def test_not_an_image(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jpg .*{message}"):
        read_image(tmp_path / "a.jpg")


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jpg does not exist"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(RGB))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"is damaged|is not an image"):
        read_image(path)


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    Image.fromarray(RGB).save(path, lossless=True, exif=b"Exif\0\0MM\0\2garbage")
    np.testing.assert_array_equal(read_image(path), RGB)


def seeds() -> list[bytes]:
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


SEEDS = seeds()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_any_damage_is_a_data_error(tmp_path_factory: pytest.TempPathFactory, file: bytes, data: st.DataObject) -> None:
    damaged = bytearray(file[: data.draw(st.integers(1, len(file)))] if data.draw(st.booleans()) else file)
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    messages = []
    for read in (read_image, image_size, read_mask_image, read_grey):
        try:
            read(path)
        except DataError as error:
            messages.append(str(error))
    assert all(str(path) in message and ";" in message for message in messages)


def test_mask_ids_are_read_from_palette_and_grey(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255]], np.uint8)
    image = Image.fromarray(ids)
    np.testing.assert_array_equal(read_mask_image(saved(tmp_path / "grey.png", image)), ids)
    image.putpalette(list(range(256)) * 3)
    np.testing.assert_array_equal(read_mask_image(saved(tmp_path / "palette.png", image)), ids)


def test_colour_picture_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png is a RGB picture, not a mask; save it as indexed"):
        read_mask_image(saved(tmp_path / "a.png", Image.fromarray(RGB)))


def test_grey_is_zero_to_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(np.array([[0, 51, 255]], np.uint8)))
    np.testing.assert_allclose(read_grey(path), [[0, 0.2, 1]], atol=1e-7)


def test_png_header_with_impossible_size(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + bytes(4))
    with pytest.raises(DataError):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("size", "fits"),
    [((100, 200), True), ((50, 102), True), ((50, 103), False), ((3, 7), True), ((1, 2), True), ((200, 100), False)],
)
def test_a_map_has_its_image_s_aspect(size: tuple[int, int], fits: bool) -> None:
    """To 2 %, or to a pixel of the map where that is more."""
    if fits:
        check_shape("a.png", size, (400, 800))
    else:
        sentence = rf"^a\.png has {size[1]}×{size[0]} pixels, its image 800×400; give it the same shape\.$"
        with pytest.raises(DataError, match=sentence):
            check_shape("a.png", size, (400, 800))
