"""Tests of runs that only train a network: `segment.write_masks: false`, and `irn.write_maps: false`."""

from pathlib import Path

import pytest
import yaml

import tagmask
from tagmask.api import evaluate_predictions
from tagmask.recipe import read_recipe_text
from tests.runs import contents, toy_run, write_toy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


def test_a_run_that_only_trains_the_network(data: Path, tmp_path: Path) -> None:
    run = toy_run(data, tmp_path / "run", ["segment.write_masks=false"])
    stage = tmp_path / "run" / "segment"
    assert not list(stage.rglob("*.png"))
    assert run.latest_stage("masks").name == "pseudo_masks"
    assert run.recommendation is not None
    assert run.recommendation.stage == "pseudo_masks"
    assert (tmp_path / "run" / "report.html").exists()
    assert [name.split()[0] for name in run.evaluation.scores] == ["pseudo_masks"]
    assert run.load_mask("3").shape == (40, 48)
    with pytest.raises(tagmask.TagmaskError, match="segment"):
        run.stage_with_masks("segment")
    source = tagmask.DataSource(root=str(data), masks="masks")
    _, scores = evaluate_predictions(tmp_path / "run", source, device="cpu", workers=0, quiet=True)
    assert 0 <= scores.miou <= 1

    network = (stage / "segmenter.safetensors").stat()
    again = toy_run(data, tmp_path / "run", ["segment.write_masks=false"])
    assert again.latest_stage("masks").name == "pseudo_masks"
    complete = toy_run(data, tmp_path / "run")
    assert (stage / "segmenter.safetensors").stat().st_mtime_ns == network.st_mtime_ns  # not trained again
    assert len(list(stage.rglob("masks/*.png"))) == 8
    assert complete.latest_stage("masks").name == "segment"
    assert any(name.startswith("segment ") for name in complete.evaluation.scores)


def test_a_run_that_only_learns_boundaries(data: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(read_recipe_text("scratch"))
    recipe["stages"] |= {
        "irn": {"epochs": 1, "batch_size": 4, "crop_size": 32, "pair_radius": 3, "write_maps": False},
        "regions": {"vote_on": "masks", "source": ["felzenszwalb", "boundaries"], "region_sizes": [20]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    run = toy_run(data, tmp_path / "run", recipe=str(path))
    assert run.recipe.stages["regions"].inputs == {"masks": "segment", "boundary": "irn"}
    stage = tmp_path / "run" / "irn"
    assert not (stage / "maps").exists()
    assert run.latest_stage("maps").name == "cam"
    assert run.latest_stage("masks").name == "regions"

    network = (stage / "boundary.safetensors").stat()
    masks = contents(tmp_path / "run" / "regions")
    toy_run(data, tmp_path / "run", ["irn.write_maps=true"], recipe=str(path))
    assert (stage / "boundary.safetensors").stat().st_mtime_ns == network.st_mtime_ns  # not trained again
    assert len(list((stage / "maps").iterdir())) == 8
    assert contents(tmp_path / "run" / "regions") == masks
