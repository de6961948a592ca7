"""Tiny networks whose masks are varied, and what PyTorch computes with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from tagmask.artifacts import write_json
from tagmask.data.transforms import normalize_images
from tagmask.methods.segment import class_probabilities
from tagmask.models.segmenter import InferenceConfig, Segmenter
from tagmask.stage_folder import StageRecord

CLASSES = ("Hund", "Fußgänger", "kot|flügel")
MULTI_SCALE = InferenceConfig(scales=(0.5, 1.0), crf=None)


def make_network(architecture: str, backbone: str = "test_resnet") -> Segmenter:
    """Return a network with random weights and normalization statistics, whose masks show every label."""
    torch.manual_seed(0)
    network = Segmenter(architecture, backbone, CLASSES).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    with torch.inference_mode():
        images = torch.from_numpy(random_images(2, 96, 128)).permute(0, 3, 1, 2)
        logits = network(normalize_images(images, network.mean, network.std))
        mean, std = logits.mean((0, 2, 3)), logits.std((0, 2, 3))
        for head in last_convolutions(network):
            head.weight.mul_((3 / std).view(-1, 1, 1, 1))
            assert head.bias is not None
            head.bias.sub_(mean / len(last_convolutions(network))).mul_(3 / std)
    return network


def last_convolutions(network: Segmenter) -> list[nn.Conv2d]:
    """Return the convolutions whose sum is the logits."""
    last = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.out_channels == len(CLASSES) + 1]
    return last if network.architecture == "deeplabv2" else last[-1:]


def random_images(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return images [count, height, width, 3] uint8 with large and small structures."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 8 + 1, width // 8 + 1, 3))
    images = coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width] + rng.integers(-20, 21, (count, height, width, 3))
    return np.clip(images, 0, 255).astype(np.uint8)


def single_pass(network: Segmenter, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks and confidences [B, H, W] that PyTorch computes at the size of the images."""
    normalized = normalize_images(torch.from_numpy(images).permute(0, 3, 1, 2), network.mean, network.std)
    results = class_probabilities(network, normalized, [None] * len(images), hflip=False)
    probabilities = np.stack([values for _, values in results])
    return probabilities.argmax(1).astype(np.uint8), probabilities.max(1)


def write_stage(folder: Path, network: Segmenter) -> Path:
    """Write a network as the stage that trained it does."""
    network.save(folder, test=MULTI_SCALE.model_dump())
    record = StageRecord(status="done", key={"seed": 0}, versions={"tagmask": "0.2"}, num_images=1234)
    write_json(folder / "stage.json", record.model_dump(mode="json"))
    return folder
