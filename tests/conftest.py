"""Small data that many tests use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagmask.compute import Compute
from tagmask.data.samples import PngMask, Sample, TaggedImages
from tagmask.progress import Reporter
from tagmask.report import drawing
from tagmask.stage import ArtifactKind, StageContext
from tagmask.stage_folder import StageFolder
from tests.storage import _s3_environment, make_storage  # noqa: F401  (fixtures)

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDENS = Path(__file__).parent / "goldens"
NUM_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(NUM_THREADS))  # of the processes that tests start


@pytest.fixture(autouse=True)
def _threads() -> None:
    """Let each test begin with one thread beside other workers of pytest-xdist, whatever the test before it has set.

    Several threads that wait for each other on a busy core cost many times the CPU time of one thread.
    """
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Dry runs keep their estimates in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _small_pictures() -> Iterator[None]:
    """Draw the pictures of reports at the size of the images: WebP would take half of the time of a toy run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "MAX_WIDTH", 60)
        yield


@pytest.fixture(scope="session")
def toy_images(tmp_path_factory: pytest.TempPathFactory) -> TaggedImages:
    """Eight images of 48×40 pixels with red, green and blue squares; one has no tag, one has all three."""
    folder = tmp_path_factory.mktemp("toy")
    colors = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]])
    samples = []
    for i, tags in enumerate([(1,), (2,), (3,), (1, 2), (2, 3), (), (1, 2, 3), (3,)]):
        rng = np.random.default_rng(i)
        image = rng.integers(90, 130, (40, 48, 3)).astype(np.uint8)
        labels = np.zeros((40, 48), np.uint8)
        for tag in tags:
            y, x = int(rng.integers(0, 26)), 1 + 16 * (tag - 1)
            image[y : y + 13, x : x + 13] = colors[tag - 1]
            labels[y : y + 13, x : x + 13] = tag
        Image.fromarray(image).save(folder / f"{i}.png")
        Image.fromarray(labels).save(folder / f"{i}_mask.png")
        samples.append(Sample(str(i), str(folder / f"{i}.png"), tags, PngMask(folder / f"{i}_mask.png"), size=(40, 48)))
    return TaggedImages(("red", "green", "blue"), tuple(samples), name="toy")


@pytest.fixture
def make_context(toy_images: TaggedImages, tmp_path: Path) -> Callable[..., StageContext]:
    """Return a function that makes a `StageContext` on the toy images: make_context("name", maps=folder, ...)."""

    def make(name: str = "stage", images: TaggedImages = toy_images, seed: int = 0, **inputs: Path) -> StageContext:
        folders: dict[ArtifactKind, StageFolder] = {kind: StageFolder(path) for kind, path in inputs.items()}  # type: ignore[misc]
        return StageContext(StageFolder(tmp_path / name), images, Compute(), Reporter(), folders, seed)

    return make
