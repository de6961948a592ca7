"""Speed of the review page's server: opening a run with many images, and the requests of the page.

    python benchmarks/review_page.py [--images 10000] [--changes 20000] [--threads 2]

The run is synthetic: JPEG images of 500×375 pixels (hard links to 50 different ones), their masks and maps of three
classes, and a log of changes. The requests are made through the whole application, security included, without a
network. Each is the median of several, on different images, and the fastest of them: on a machine that does other work,
the fastest says more. "during scoring" are the lists that were asked for while another process was scoring the masks.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from tagmask.api import load_run
from tagmask.artifacts import write_json, write_text
from tagmask.compute import set_threads
from tagmask.data.source import DataSource
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.recipe import Recipe
from tagmask.review.app import create_app
from tagmask.review.images import image_key
from tagmask.review.security import Access
from tagmask.review.server import warm_up
from tagmask.review.session import ReviewSession
from tagmask.review_log import ReviewEvent
from tagmask.run_folder import RunFolder, RunSources

SIZE, NUM_DIFFERENT, PORT = (375, 500), 50, 80
CLASSES = ("cat", "cow", "dog")
ORIGIN = "http://localhost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder), arguments.images, arguments.changes)
        opened = load_run(run, device="cpu")
        _ = opened.recipe  # imports PyTorch, which is not measured here
        start = time.perf_counter()
        session = ReviewSession(opened)
        opening = time.perf_counter() - start
        print(f"{'':45}   median     fastest")
        print_times(f"open {arguments.images} images, {arguments.changes} changes", [opening])
        warm_up()
        measure_requests(session)


def measure_requests(session: ReviewSession) -> None:
    """Print the time of each request of the page."""
    access = Access(PORT, max_body=10**9)
    cookies = {access.cookie_name: access.cookie}
    client = TestClient(create_app(session, access), base_url=ORIGIN, cookies=cookies, headers={"Host": "localhost"})
    headers = {"X-Tagmask": "1", "Origin": ORIGIN}
    keys = [image_key(str(number)) for number in range(NUM_DIFFERENT)]
    next_key = iter(keys * 20)
    mask = np.zeros(SIZE, np.uint8)
    num_changes = client.get("/api/changes").json()["next"]

    def get(path: str) -> Callable[[], object]:
        return lambda: client.get(path.replace("KEY", next(next_key))).raise_for_status()

    def cut(crf: bool) -> object:
        content = {"thresholds": {"1": 0.3, "2": 0.5, "3": 0.6}, "crf": crf}
        return client.post(f"/api/images/{next(next_key)}/cut", json=content, headers=headers).raise_for_status()

    def save() -> object:
        url = f"/api/images/{next(next_key)}"
        mask.ravel()[np.random.default_rng().integers(0, mask.size, 100)] += 1
        base = client.get(url).json()["version"]
        content = (mask % 4).tobytes()
        return client.put(f"{url}/mask", content=content, params={"base": base}, headers=headers).raise_for_status()

    for name, request in {
        "list of all images": get("/api/images"),
        "changes, when there are none": get(f"/api/changes?since={num_changes}"),
        "thumbnail, drawn": get("/api/images/KEY/thumbnail"), "thumbnail, kept": get("/api/images/KEY/thumbnail"),
        "all about one image": get("/api/images/KEY"), "photograph": get("/api/images/KEY/photo"),
        "mask": get("/api/images/KEY/mask"), "maps": get("/api/images/KEY/maps"), "cut": lambda: cut(False),
        "cut and CRF": lambda: cut(True), "superpixels": get("/api/images/KEY/superpixels"), "save a mask": save,
    }.items():  # fmt: skip
        count = 5 if name.startswith("list") else NUM_DIFFERENT
        print_times(name, [seconds(request) for _ in range(count)])
    session.doubt.start()
    lists: list[float] = []
    while session.doubt.progress is not None and len(lists) < 50:
        lists.append(seconds(get("/api/images")))
        time.sleep(0.5)
    session.doubt.stop()
    print_times("list of all images, during scoring", lists)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def print_times(name: str, times: list[float]) -> None:
    print(f"{name:45} {median(times) * 1000:8.1f} ms {min(times) * 1000:8.1f} ms", flush=True)


def write_run(folder: Path, num_images: int, num_changes: int) -> Path:
    """Write a finished run; only the first images are different, the others are hard links to them."""
    rng = np.random.default_rng(0)
    run = RunFolder(folder / "run")
    recipe = Recipe.model_validate({"stages": {"cam": {"method": "cam"}, "masks": {"method": "pseudo_masks"}}})
    tables = ["image,tags"]
    (folder / "data").mkdir()
    for number in range(num_images):
        paths = [
            folder / "data" / f"{number}.jpg", run.stage("masks").mask_path(str(number)),
            run.stage("cam").maps_path(str(number)),
        ]  # fmt: skip
        if number < NUM_DIFFERENT:
            write_image(rng, *paths)
        else:
            for path in paths:
                os.link(path.with_stem(str(number % NUM_DIFFERENT)), path)
        tables.append(f"{number}.jpg,{';'.join(CLASSES)}")
    write_text(folder / "data" / "tags.csv", "\n".join(tables) + "\n")
    for name in recipe.stages:
        write_json(run.stage(name).record_path, {"status": "done", "key": {}, "num_images": num_images})
    write_json(run.stage("masks").threshold_path, {"threshold": 0.3})
    source = DataSource(root=str(folder / "data"))
    run.write_record(RunSources(images=source), CLASSES)
    write_text(run.recipe_path, recipe.to_yaml())
    event = {"time": "2026-01-01T00:00:00.000+00:00", "user": "me", "state": "rejected", "source": "benchmark"}
    images = (str(number % num_images) for number in range(num_changes))
    lines = (ReviewEvent(image=image, **event).model_dump_json(exclude_none=True) for image in images)
    write_text(run.path / "review" / "log.jsonl", "".join(f"{line}\n" for line in lines))
    return run.path


def write_image(rng: np.random.Generator, image: Path, mask: Path, maps: Path) -> None:
    """Write a noisy image with smooth colors, smooth maps of three classes, and the mask that is cut from them."""

    def smooth(num: int) -> np.ndarray:
        grid = rng.random((num, 5, 6)).astype(np.float32)
        return np.stack(
            [np.asarray(Image.fromarray(plane).resize(SIZE[::-1], Image.Resampling.BICUBIC)) for plane in grid]
        )

    pixels = smooth(3).transpose(1, 2, 0) * 220 + rng.normal(0, 8, (*SIZE, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(image, quality=90)
    cells = grid_size(SIZE)
    grids = smooth(3)[:, : 4 * cells[0] : 4, : 4 * cells[1] : 4].clip(0, 1)
    response = ResponseMaps(np.array([1, 2, 3]), grids, SIZE)
    response.save(maps)
    write_label_map(mask, response.label_map(0.3))


if __name__ == "__main__":
    main()
