"""Pseudo-masks at a threshold for each image, with a first network's help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tagmask.data.samples import TaggedImages
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.methods._threshold import THRESHOLD_FILE, read_threshold
from tagmask.methods.per_image import PerImage
from tagmask.models.segmenter import Segmenter
from tests.methods.contract import MakeContext, MethodContract


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory, toy_images: TaggedImages) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("segment")
    Segmenter("Unet", "resnet18", toy_images.classes).save(folder)
    return folder


class TestPerImage(MethodContract):
    method = PerImage
    settings = {"crf": {"steps": 2}}  # noqa: RUF012
    trains = False

    @pytest.fixture(autouse=True)
    def _with_a_network(self, earlier: dict[str, Path], segmenter: Path) -> None:
        self.segmenter = segmenter

    def run(self, make_context: MakeContext, earlier: dict[str, Path], name: str = "stage", **changes: Any) -> Any:
        return super().run(make_context, {**earlier, "segmenter": self.segmenter}, name, **changes)


def network_that_sees(end: int) -> type[Segmenter]:
    """Foreground in the columns left of `end`, and nothing else."""

    class Sees(Segmenter):
        @classmethod
        def load(cls, folder: Path) -> Segmenter:
            network = Segmenter.load(folder)

            def forward(images: Tensor) -> Tensor:
                logits = torch.zeros(len(images), len(network.classes) + 1, *images.shape[2:])
                logits[:, 1:] = 20 * (torch.arange(images.shape[3]) < end) - 10
                half = len(images) // 2
                logits[half:] = logits[half:].flip(3)  # the mirror images
                return logits

            network.forward = forward  # type: ignore[method-assign]
            return network

    return Sees


@pytest.mark.parametrize("end", [24, 40])
@pytest.mark.parametrize("saliency_end", [None, 32])
def test_the_mask_ends_where_the_network_or_the_saliency_does(
    make_context: MakeContext,
    tmp_path: Path,
    toy_images: TaggedImages,
    segmenter: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: int,
    saliency_end: int | None,
) -> None:
    """An even image and a map that falls from left to right; where there is saliency, the network is not asked."""
    size, image, saliency = (32, 64), tmp_path / "even.png", None
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(image)
    if saliency_end is not None:
        saliency = tmp_path / "saliency.png"
        grey = np.where(np.arange(64) < saliency_end, 255, 0)[None].repeat(32, 0).astype(np.uint8)
        Image.fromarray(grey).save(saliency)
    sample = replace(toy_images.samples[0], id="even", image=str(image), tags=(1,), size=size, saliency=saliency)
    fall = np.linspace(1, 0, 16, dtype=np.float32)[None, None].repeat(8, 1)
    ResponseMaps(np.array([1]), fall, size).save(tmp_path / "cam" / "maps" / "even.safetensors")
    monkeypatch.setattr("tagmask.methods.per_image.Segmenter", network_that_sees(end))
    images = replace(toy_images, samples=(sample,))
    context = make_context(maps=tmp_path / "cam", segmenter=segmenter, images=images)
    PerImage(crf=None).run(context)
    width = (read_label_map(context.folder.mask_path(sample.id)) > 0).sum(1).mean()
    assert width == pytest.approx(saliency_end or end, abs=2)
    assert (context.folder.path / THRESHOLD_FILE).exists()
    assert read_threshold(context.folder) is None  # each image has its own
