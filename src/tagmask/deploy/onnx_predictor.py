"""`OnnxPredictor`: an exported network, applied to new images with onnxruntime. Imports no PyTorch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tagmask.artifacts import file_digest
from tagmask.base_predictor import BasePredictor
from tagmask.compute import Processes, default_workers
from tagmask.data.samples import Sample, TaggedImages
from tagmask.deploy.onnx_file import OnnxFile
from tagmask.label_map import write_label_map
from tagmask.large_images import segment_tiles
from tagmask.progress import Reporter
from tagmask.stage_folder import StageFolder


@dataclass(frozen=True)
class OnnxPredictor(BasePredictor):
    """A segmentation network in an ONNX file that tagmask exported. It sees each image once, at its own size.

    Attributes:
        file: the open ONNX file.
        workers: threads that read images while the network computes.

    Example:
        >>> predictor = tagmask.load_onnx("exported/onnx/model.onnx")
        >>> predictor.predict(tagmask.read_image("photos/beach/001.jpg"), tags=["dog"]).shape
        (40, 48)
    """

    file: OnnxFile
    workers: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; class id k is `classes[k - 1]`."""
        return self.file.labels[1:]

    @cached_property
    def network_key(self) -> str:
        return file_digest(self.file.path)

    @property
    def processes(self) -> Processes:
        return Processes(workers=self.workers)

    def single_pass(self) -> OnnxPredictor:
        return self

    def segment(self, image: np.ndarray, tags: Sequence[int] | None) -> np.ndarray:
        allowed = None
        if tags is not None:
            allowed = np.zeros(len(self.file.labels), bool)
            allowed[[0, *tags]] = True
        return segment_tiles(image, lambda part: self.file.run(part[None], allowed)[0][0])

    def write_missing_masks(self, folder: StageFolder, images: TaggedImages, reporter: Reporter) -> None:
        pending = [sample for sample in images.samples if not folder.mask_path(sample.id).exists()]
        with reporter.progress("masks of the network", len(pending)) as advance:
            for sample, image in _read_ahead(pending, max(1, self.workers)):
                write_label_map(folder.mask_path(sample.id), self.segment(image, sample.tags))
                advance(1)


def load_onnx(path: str | Path, *, device: str = "auto", workers: int | None = None) -> OnnxPredictor:
    """Open an ONNX file that `tagmask export --format onnx` wrote. Needs onnxruntime, but no PyTorch.

    Args:
        path: the file.
        device: "auto" (the GPU if onnxruntime finds one), "cpu", "cuda" or "cuda:1".
        workers: threads that read images; None: one per core.

    Raises:
        RecipeError: onnxruntime does not have the device.
        RunError: onnxruntime is not installed, or the file is missing, damaged or not of tagmask.

    Example:
        >>> tagmask.load_onnx("exported/onnx/model.onnx").classes
        ('dog', 'person')
    """
    return OnnxPredictor(OnnxFile.load(Path(path), device), default_workers() if workers is None else workers)


def _read_ahead(samples: Sequence[Sample], workers: int) -> Iterator[tuple[Sample, np.ndarray]]:
    """Yield the samples with their images, which threads read while the network computes."""
    waiting: deque[tuple[Sample, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for sample in samples:
            waiting.append((sample, pool.submit(sample.read_image)))
            if len(waiting) > workers:
                earlier, image = waiting.popleft()
                yield earlier, image.result()
        while waiting:
            earlier, image = waiting.popleft()
            yield earlier, image.result()
