"""What the page reads: the run, its images, masks, maps, photographs and superpixels."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import tagmask
from tagmask.data.source import DataSource
from tagmask.maps import ResponseMaps
from tagmask.report.colors import label_colors
from tagmask.review.images import ReviewImage, image_key
from tagmask.review.pictures import thumbnail_size
from tagmask.review.superpixels import NUM_SUPERPIXELS, enlarge
from tests.review.conftest import Tab


def decode(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_the_run(client: TestClient) -> None:
    run = client.get("/api/run").json()
    assert run["name"] == "run"
    assert run["stage"] == "segment"
    assert [(entry["id"], entry["name"]) for entry in run["classes"]] == [(1, "blue"), (2, "green"), (3, "red")]
    assert all(entry["color"].startswith("#") for entry in run["classes"])
    assert (run["threshold"], run["has_maps"], run["num_images"], run["states"]) == (0.4, True, 8, {"open": 8})


def test_one_row_per_image(client: TestClient) -> None:
    answer = client.get("/api/images").json()
    rows = [dict(zip(answer["columns"], row, strict=True)) for row in answer["images"]]
    assert [row["id"] for row in rows] == [str(number) for number in range(8)]
    assert rows[3]["key"] == hashlib.sha256(b"3").hexdigest()[:16]
    assert (rows[3]["width"], rows[3]["height"], rows[3]["tags"]) == (48, 40, [2, 3])
    assert [rows[3][name] for name in ("state", "doubt", "version", "corrected_tags")] == ["open", None, 0, None]


def test_masks_and_maps(tab: Tab) -> None:
    expected = np.zeros((40, 48))
    expected[:, :13] = 2
    np.testing.assert_array_equal(tab.mask(), expected)
    description = tab.get().json()
    assert description["maps"] == {"classes": [2, 3], "grid": [10, 12], "background": False}
    maps = np.frombuffer(tab.get("/maps").content, "<f4").reshape(2, 10, 12)
    np.testing.assert_array_equal(maps[0, :, :4], 0.75)
    assert maps[0, :, 4:].max() == maps[1].max() == 0


def test_a_background_map_comes_last(tab: Tab, folder: Path) -> None:
    rng = np.random.default_rng(0)
    maps = ResponseMaps(np.array([1, 3]), rng.random((2, 10, 12)), (40, 48), rng.random((10, 12)))
    maps.save(folder / "cam" / "maps" / "3.safetensors")
    assert tab.get().json()["maps"] == {"classes": [1, 3], "grid": [10, 12], "background": True}
    sent = np.frombuffer(tab.get("/maps").content, "<f4").reshape(3, 10, 12)
    np.testing.assert_array_equal(sent, np.concatenate([maps.maps, maps.background[None]]).astype(np.float16))  # type: ignore[index]


def test_a_photograph_that_browsers_show_as_it_is(tab: Tab, data: Path) -> None:
    photo = tab.get("/photo")
    assert photo.headers["content-type"] == "image/png"
    assert photo.content == (data / "3.png").read_bytes()
    again = tab.client.get(f"{tab.url}/photo", headers={"If-None-Match": photo.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    pixels = decode(photo.content)
    Image.fromarray(255 - pixels).save(data / "3.png")
    new = tab.client.get(f"{tab.url}/photo", headers={"If-None-Match": photo.headers["etag"]})
    assert (new.status_code, new.headers["etag"] == photo.headers["etag"]) == (200, False)
    np.testing.assert_array_equal(decode(new.content), 255 - pixels)


@pytest.mark.parametrize("kind", ["rotated by EXIF", "gray", "transparent", "palette", "16 bits"])
def test_a_photograph_that_tagmask_converts(tab: Tab, data: Path, kind: str) -> None:
    path = data / "3.png"
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (10, 12, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    image, exif = Image.fromarray(pixels), Image.Exif()
    if kind == "rotated by EXIF":
        exif[0x0112] = 6
        Image.fromarray(np.rot90(pixels)).save(path, exif=exif)
    elif kind == "16 bits":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(path)
    else:
        image = {"gray": image.convert("L"), "palette": image.quantize(32), "transparent": image.convert("RGBA")}[kind]
        if kind == "transparent":
            image.putalpha(Image.fromarray(pixels[..., 0]))
        image.save(path)
    photo = tab.get("/photo")
    assert photo.headers["content-type"] == "image/jpeg"
    assert photo.content != path.read_bytes()
    difference = np.abs(decode(photo.content).astype(int) - tagmask.read_image(path))
    assert difference.mean() < 3, "the loss of JPEG"


def test_a_thumbnail_shows_the_newest_mask(tab: Tab, folder: Path) -> None:
    thumbnail = tab.get("/thumbnail", v=0)
    assert thumbnail.headers["content-type"] == "image/webp"
    assert "immutable" in thumbnail.headers["cache-control"]
    files = [*(folder / "review" / ".thumbnails").rglob("*.webp")]
    assert [file.read_bytes() for file in files] == [thumbnail.content]
    files[0].write_bytes(b"cached")
    assert tab.get("/thumbnail").content == b"cached"
    mask = np.zeros((40, 48), np.uint8)
    mask[:, 24:] = 3
    tab.put_mask(mask, 0)
    picture = decode(tab.get("/thumbnail", v=1).content).astype(int)
    assert picture.shape == (40, 48, 3)
    photo = decode(tab.get("/photo").content)
    assert np.abs(picture[:, :20] - photo[:, :20]).mean() < 12, "background is not covered"
    covered = (photo[:, 28:46].astype(int) + label_colors()[3]) / 2
    assert np.abs(picture[:, 28:46] - covered).mean() < 25
    assert len([*(folder / "review" / ".thumbnails").rglob("*.webp")]) == 1, "the old thumbnail is removed"
    tab.post("/state", state="reject", base=1)
    assert np.abs(decode(tab.get("/thumbnail", v=2).content).astype(int) - decode(thumbnail.content)).max() == 0


def test_thumbnails_of_a_folder_that_cannot_be_written(tab: Tab, folder: Path) -> None:
    (folder / "review").mkdir()
    (folder / "review" / ".thumbnails").write_text("no folder")
    assert decode(tab.get("/thumbnail").content).shape == (40, 48, 3)


@pytest.mark.parametrize("size", [*NUM_SUPERPIXELS, None])
def test_superpixels(tab: Tab, size: str | None) -> None:
    answer = tab.get("/superpixels", **({"size": size} if size else {}))
    sent = np.frombuffer(answer.content, "<u4").reshape(40, 48)
    numbers = np.unique(sent)
    assert numbers.tolist() == list(range(len(numbers)))
    expected = NUM_SUPERPIXELS.get(size or "medium", 0)  # type: ignore[call-overload]
    assert 0.4 * expected < len(numbers) <= 1.2 * expected
    assert tab.get("/superpixels", size="huge").status_code == 400


def test_superpixels_do_not_cross_an_edge(tab: Tab, data: Path) -> None:
    pixels = np.zeros((40, 48, 3), np.uint8)
    pixels[:, 29:] = 255
    Image.fromarray(pixels).save(data / "3.png")
    sent = np.frombuffer(tab.get("/superpixels", size="large").content, "<u4").reshape(40, 48)
    assert not set(np.unique(sent[:, :29])) & set(np.unique(sent[:, 29:]))


def test_enlarged_labels() -> None:
    small = np.arange(6, dtype=np.uint16).reshape(2, 3)
    np.testing.assert_array_equal(enlarge(small, (4, 6)), np.kron(small, np.ones((2, 2), int)))
    assert enlarge(small, (2, 3)) is small
    expected = np.asarray(Image.fromarray(small).resize((7, 5), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(enlarge(small, (5, 7)), expected)


def test_a_large_image_is_refined_and_divided_at_its_reduced_size(
    tab: Tab, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagmask.large_images, "MAX_PIXELS", 1000)
    pixels = np.zeros((40, 48, 3), np.uint8)
    pixels[:, 16:] = 255
    Image.fromarray(pixels).save(data / "3.png")
    assert not tab.get().json()["too_large"]
    labels = np.frombuffer(tab.post("/cut", thresholds={"2": 0.4}, crf=True).content, np.uint8).reshape(40, 48)
    assert (labels[:, :15] == 2).all()
    assert not labels[:, 17:].any()
    superpixels = np.frombuffer(tab.get("/superpixels", size="large").content, "<u4").reshape(40, 48)
    assert 40 < len(np.unique(superpixels)) <= 120
    assert not set(np.unique(superpixels[:, :15])) & set(np.unique(superpixels[:, 17:]))


def test_an_image_that_is_too_large_for_a_browser(tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagmask.review.images, "MAX_EDITOR_PIXELS", 40 * 48 - 1)
    description = tab.get().json()
    assert (description["too_large"], description["maps"], description["width"]) == (True, None, 48)
    for what in ("/mask", "/photo", "/maps", "/superpixels"):
        refused = tab.get(what)
        assert refused.status_code == 413
        assert "3 has 48×40 pixels, too many for this page" in refused.json()["error"]
    assert tab.post("/cut", thresholds={}).status_code == 413
    assert tab.put_mask(np.zeros((40, 48)), 0).status_code == 413
    assert decode(tab.get("/thumbnail").content).shape == (40, 48, 3)
    assert tab.post("/state", state="reject", base=0).json()["state"] == "rejected"


def test_the_limits_of_the_editor(data: Path) -> None:
    sample = DataSource(root=str(data)).read().samples[3]
    sizes = [(4096, 8192), (8193, 4096), (10, 16_384), (10, 16_385), (0, 0)]
    assert [ReviewImage("", sample, size).is_too_large for size in sizes] == [False, True, False, True, False]
    assert thumbnail_size((4000, 3000)) == (256, 192)
    assert thumbnail_size((40, 48)) == (40, 48)
    assert thumbnail_size((1, 9000)) == (1, 256)


def test_an_image_file_that_is_gone(tab: Tab, client: TestClient, data: Path) -> None:
    (data / "3.png").unlink()
    for what in ("/photo", "/thumbnail", "/superpixels"):
        failed = tab.get(what)
        assert failed.status_code == 500
        assert "3.png does not exist" in failed.json()["error"]
    assert tab.post("/cut", thresholds={"2": 0.4}, crf=True).status_code == 500
    assert tab.post("/cut", thresholds={"2": 0.4}).status_code == 200
    assert tab.get().status_code == tab.get("/mask").status_code == 200
    assert tab.post("/state", state="accept", base=0).json()["state"] == "accepted"
    assert len(client.get("/api/images").json()["images"]) == 8


def test_an_image_file_that_was_replaced(tab: Tab, data: Path) -> None:
    Image.new("RGB", (50, 40)).save(data / "3.png")
    for failed in (tab.get("/photo"), tab.get("/superpixels"), tab.post("/cut", thresholds={"2": 0.4}, crf=True)):
        assert failed.status_code == 500
        assert "has 50×40 pixels, but its mask 48×40" in failed.json()["error"]


def test_damaged_files_give_one_sentence(tab: Tab, client: TestClient, folder: Path) -> None:
    (folder / "segment" / "masks" / "3.png").write_bytes(b"\x89PNG no")
    (folder / "cam" / "maps" / "3.safetensors").write_bytes(b"no")
    description = tab.get().json()
    assert description["maps"] is None
    assert "3.safetensors is damaged" in description["maps_error"]
    for failed in (tab.get("/mask"), tab.get("/thumbnail"), tab.get("/maps"), tab.post("/cut", thresholds={"2": 0.4})):
        assert failed.status_code == 500
        assert failed.json()["error"].endswith(".")
        assert len(failed.json()["error"]) < 400
    assert tab.post("/state", state="accept", base=0).status_code == 500
    assert tab.put_mask(np.ones((40, 48)), 0, "accept").json()["state"] == "corrected"
    assert tab.mask().all()
    (folder / "review" / "masks" / "3.png").write_bytes(b"")
    assert "reopen the image, or restore" in tab.get("/mask").json()["error"]
    assert tab.post("/state", state="open", base=1).json()["state"] == "open"


def test_a_mask_that_was_damaged_before_has_the_size_of_its_image(
    folder: Path, data: Path, request: pytest.FixtureRequest
) -> None:
    for number, content in ((3, b""), (4, b"GIF89a no PNG"), (5, b"\x89PNG")):
        (folder / "segment" / "masks" / f"{number}.png").write_bytes(content)
    (data / "5.png").unlink()
    client: TestClient = request.getfixturevalue("client")
    sizes = {row[1]: row[2:4] for row in client.get("/api/images").json()["images"]}
    assert (sizes["3"], sizes["4"]) == ([48, 40], [48, 40])
    assert "5" not in sizes, "the table names an image that does not exist any longer"
    assert Tab(client, "3").put_mask(np.ones((40, 48)), 0).json()["state"] == "draft"


def test_ids_with_slashes_spaces_and_umlauts_have_keys() -> None:
    ids = ["sub folder/ü 1", "sub folder/ü 2", "../x", ""]
    assert len({image_key(image_id) for image_id in ids}) == 4
    assert all(key.isalnum() and len(key) == 16 for key in map(image_key, ids))
