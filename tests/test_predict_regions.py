"""Tests of `tagmask predict --regions`: masks of new images after the vote of a run's stage `regions`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tagmask import large_images
from tagmask.api import load
from tagmask.data.images import read_image
from tagmask.data.shard_reader import ShardedMasks
from tagmask.data.shard_writer import pack_shards
from tagmask.data.source import DataSource
from tagmask.data.transforms import normalize_images
from tagmask.errors import RunError
from tagmask.label_map import read_label_map
from tagmask.models.boundary_network import BoundaryNetwork, predict_boundaries
from tagmask.models.segmenter import Segmenter
from tagmask.predict_shards import predict_shards
from tagmask.progress import Reporter
from tagmask.recipe import read_recipe_text
from tagmask.refine.regions import boundary_regions, felzenszwalb_regions, vote
from tests.runs import toy_run, write_toy

ARGUMENTS = {"device": "cpu", "precision": "float32", "workers": 0}
DEPTH, SCALE = 0.01, 20.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data") / "toy", masks=False)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a stage `regions` after its network."""
    recipe = yaml.safe_load(read_recipe_text("scratch"))
    recipe["stages"] |= {
        "irn": {"epochs": 1, "batch_size": 4, "crop_size": 32, "pair_radius": 3, "write_maps": False},
        "regions": {
            "vote_on": "masks", "source": ["felzenszwalb", "boundaries"], "region_sizes": [SCALE],
            "boundary_depth": DEPTH,
        },
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    settings = ["segment.epochs=0", "segment.weights=none"]  # random labels, which the vote changes
    toy_run(data, folder / "run", settings, recipe=str(folder / "recipe.yaml"), source=DataSource(root=str(data)))
    return folder / "run"


def voted(run: Path, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the labels after the vote, put together from its parts."""
    network = BoundaryNetwork.load(run / "irn").eval()
    views = normalize_images(
        torch.from_numpy(image).permute(2, 0, 1)[None], network.backbone.mean, network.backbone.std
    )
    boundary = predict_boundaries(network, views)[0][0].numpy()
    size = (image.shape[0], image.shape[1])
    layers = [felzenszwalb_regions(image, [SCALE]), boundary_regions(boundary, size, DEPTH)]
    return vote(labels, np.concatenate(layers))


def test_files_are_masks_of_the_network_after_the_vote(run: Path, data: Path, tmp_path: Path) -> None:
    opened = load(run, **ARGUMENTS)
    before = opened.predict_files([data], tmp_path / "before", quiet=True)
    after = opened.predict_files([data], tmp_path / "after", regions=True, quiet=True)
    assert set(before) == set(after)
    num_changed = 0
    for image_id, path in after.items():
        image, labels = read_image(data / f"{image_id}.png"), read_label_map(before[image_id])
        np.testing.assert_array_equal(read_label_map(path), voted(run, image, labels))
        num_changed += not np.array_equal(read_label_map(path), labels)
    assert num_changed > 0
    with pytest.raises(RunError, match="another"):  # masks of another network
        opened.predict_files([data], tmp_path / "after", quiet=True)


def test_arrays_and_shards_get_the_same_masks_as_files(run: Path, data: Path, tmp_path: Path) -> None:
    files = load(run, **ARGUMENTS).predict_files([data], tmp_path / "files", regions=True, quiet=True)
    predictor = load(run, **ARGUMENTS).predictor.with_regions()
    for image_id, path in files.items():
        np.testing.assert_array_equal(predictor.predict(read_image(data / f"{image_id}.png")), read_label_map(path))
    pack_shards(DataSource(root=str(data)).read(), str(tmp_path / "shards"), progress=Reporter().progress)
    predict_shards(run, tmp_path / "shards", tmp_path / "masks", regions=True, quiet=True, **ARGUMENTS)
    from_shards = ShardedMasks.open_if_any(str(tmp_path / "masks"))
    assert from_shards is not None
    for image_id, path in files.items():
        np.testing.assert_array_equal(from_shards.read(image_id), read_label_map(path))


def test_regions_of_a_large_image_are_those_of_the_reduced_one(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tagmask.large_images.MAX_PIXELS", 1000)
    image = read_image(data / "6.png")
    predictor = load(run, **ARGUMENTS).predictor
    labels = predictor.predict(image)
    small = large_images.reduce_image(image)
    size = (small.shape[0], small.shape[1])
    assert small.shape[0] * small.shape[1] <= 1000
    expected = voted(run, small, large_images.resize_labels(labels, size))
    np.testing.assert_array_equal(
        predictor.with_regions().predict(image), large_images.resize_labels(expected, labels.shape)
    )


def test_without_such_a_stage(data: Path, tmp_path: Path) -> None:
    run = toy_run(data, tmp_path / "run", ["segment.epochs=0"], source=DataSource(root=str(data)))
    with pytest.raises(RunError, match=r"has no stage `regions` that changes the masks of segment: add one with"):
        run.predict_files([data], tmp_path / "out", regions=True, quiet=True)
    assert not (tmp_path / "out").exists()
    Segmenter("Unet", "test_resnet", ("dog",)).save(tmp_path / "hub", test={"scales": [1.0], "crf": None})
    with pytest.raises(RunError, match="an exported network has no regions"):
        load(tmp_path / "hub", **ARGUMENTS).predict_files([data], tmp_path / "out", regions=True, quiet=True)
