"""The Python API: `tagmask.run`, `tagmask.load` and `Run`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tagmask
import tagmask.evaluate
from tagmask.artifacts import read_json, write_json
from tagmask.data.images import read_image
from tagmask.data.samples import TaggedImages
from tagmask.errors import DataError, RecipeError, RunError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.pipeline import stage_keys
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import StageFolder
from tests.runs import toy_run, write_toy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tagmask.Run:
    return toy_run(data, tmp_path_factory.mktemp("runs") / "run")


def test_importing_is_light() -> None:
    code = "import sys, tagmask; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_is_there() -> None:
    assert all(getattr(tagmask, name) is not None for name in tagmask.__all__)
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = tagmask.rum


def test_paths_of_a_run(run: tagmask.Run) -> None:
    assert run.report == run.folder / "report.html"
    assert len(list(run.masks_dir.glob("*.png"))) == 8
    assert run.classes == ("blue", "green", "red")
    assert run.mask_path("3") == run.masks_dir / "3.png"


def test_predict_returns_all_classes_or_only_the_known_ones(run: tagmask.Run, data: Path) -> None:
    image = read_image(data / "6.png")
    labels = run.predict(image)
    assert labels.shape == image.shape[:2]
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
    for tags in (["red"], ["green", "blue"], ["blue", "green"]):
        known = {run.classes.index(tag) + 1 for tag in tags}
        assert set(np.unique(run.predict(image, tags=tags))) <= {0, *known}
    np.testing.assert_array_equal(run.predict(image, ["green", "blue"]), run.predict(image, ["blue", "green"]))
    assert not run.predict(image, tags=[]).any()


def test_predict_equals_the_masks_of_the_run(run: tagmask.Run, data: Path) -> None:
    """The run processes batches, `predict` single images: the last digits of the probabilities differ."""
    for i, tags in ((0, ["red"]), (6, ["red", "green", "blue"])):
        labels = run.predict(read_image(data / f"{i}.png"), tags)
        assert (labels == read_label_map(run.folder / "segment" / "masks" / f"{i}.png")).mean() > 0.99


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 3), (33, 17, 3)])
def test_predict_takes_any_size(run: tagmask.Run, shape: tuple[int, ...]) -> None:
    assert run.predict(np.zeros(shape, np.uint8)).shape == shape[:2]


def test_predict_takes_views_and_read_only_arrays(run: tagmask.Run, data: Path) -> None:
    image = read_image(data / "0.png")
    mirrored = image[:, ::-1]
    np.testing.assert_array_equal(run.predict(mirrored), run.predict(mirrored.copy()))
    image.flags.writeable = False
    run.predict(image)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_predict_refuses_other_arrays(run: tagmask.Run, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"not uint8 \[H, W, 3\]"):
        run.predict(image)


def test_predict_names_the_nearest_tag(run: tagmask.Run) -> None:
    with pytest.raises(DataError, match="tag 'rad' is not a class of this network: did you mean 'red'"):
        run.predict(np.zeros((4, 4, 3), np.uint8), tags=["rad"])


def test_a_run_can_be_opened_again(run: tagmask.Run, data: Path) -> None:
    opened = tagmask.load(run.folder, device="cpu", workers=0)
    image = read_image(data / "3.png")
    assert opened.recipe == run.recipe
    assert opened.images.read().classes == run.classes
    np.testing.assert_array_equal(opened.predict(image), run.predict(image))


def test_load_maps_of_an_image(run: tagmask.Run) -> None:
    maps = run.load_maps("6")
    assert isinstance(maps, tagmask.ResponseMaps)
    assert maps.classes.tolist() == [1, 2, 3]
    assert maps.size == (40, 48)
    with pytest.raises(
        RunError, match=r"has no image '6\.png'; the id of an image is its path in the data set, without"
    ):
        run.load_maps("6.png")


def test_predict_names_a_wrong_argument(run: tagmask.Run, data: Path) -> None:
    with pytest.raises(ValueError, match="image is a str, not an array"):
        run.predict(str(data / "0.png"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tags is the text 'red', not a list of class names"):
        run.predict(read_image(data / "0.png"), tags="red")


def test_predict_files(run: tagmask.Run, data: Path, tmp_path: Path) -> None:
    also = ["coco", "coco-polygons"]
    masks = run.predict_files([data / "0.png", data / "3.png"], tmp_path, also=also, quiet=True)
    assert sorted(masks) == ["0", "3"]
    assert all(read_label_map(file).shape == (40, 48) for file in masks.values())
    assert (tmp_path / "coco/annotations/instances_train.json").exists()
    assert (tmp_path / "coco-polygons/annotations/instances_train.json").exists()
    with pytest.raises(RunError, match="format 'cocoo' is not known"):
        run.predict_files([data / "0.png"], tmp_path / "none", also=["cocoo"], quiet=True)
    assert not (tmp_path / "none").exists()


def test_predict_ignores_its_own_masks(run: tagmask.Run, data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "0.png", tmp_path)
    for _ in range(2):
        assert list(run.predict_files([tmp_path], tmp_path / "out", also=["overlays"], quiet=True)) == ["0"]


def test_predict_warns_of_a_network_that_has_not_learned_its_classes(
    copied: tagmask.Run, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recommendation = copied.recommendation
    assert recommendation is not None
    bad = recommendation.model_copy(update={"undertrained": True, "reason": "the network has not learned red"})
    write_json(copied.folder / "recommendation.json", bad.model_dump())
    copied.predict_files([data / "0.png"], tmp_path / "out")
    assert "warning: the network has not learned red" in capfd.readouterr().err


def test_no_stage_is_added_to_an_unfinished_run(run: tagmask.Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run")
    record = folder / "segment" / "stage.json"
    write_json(record, {**read_json(record), "status": "running"})
    with pytest.raises(RunError, match=r"stage 'segment' of .* is not finished: run the original command again first"):
        tagmask.load(folder, device="cpu", workers=0).run_stage("layercam", quiet=True)
    assert not (folder / "layercam").exists()


def test_export_writes_the_masks_of_a_stage(run: tagmask.Run, tmp_path: Path) -> None:
    folder = run.export(tmp_path, "png", stage="pseudo_masks", quiet=True)
    assert sorted(f.name for f in (folder / "masks").iterdir()) == [f"{i}.png" for i in range(8)]
    np.testing.assert_array_equal(
        read_label_map(folder / "masks" / "0.png"), read_label_map(run.folder / "pseudo_masks/masks/0.png")
    )


def test_update_report_measures_again(run: tagmask.Run) -> None:
    before = (run.folder / "evaluation.json").read_text()
    evaluation = run.update_report(quiet=True)
    assert set(evaluation.scores) == {
        f"{stage} ({Path(run.images.root).name})" for stage in ("pseudo_masks", "segment")
    }
    assert (run.folder / "evaluation.json").read_text() == before


def test_the_recipe_can_be_an_object(data: Path, tmp_path: Path) -> None:
    from tagmask.methods.cam import Cam
    from tagmask.methods.pseudo_masks import PseudoMasks
    from tests.methods.contract import TOY_CAM

    recipe = tagmask.Recipe(stages={"cam": Cam(**TOY_CAM), "pseudo_masks": PseudoMasks(threshold=0.3, refine="none")})
    made = tagmask.run(data, tmp_path / "run", recipe=recipe, seed=5, device="cpu", workers=0, quiet=True)
    assert len(list(made.masks_dir.iterdir())) == 8
    assert tagmask.load(tmp_path / "run").recipe.seed == 5
    with pytest.raises(
        RunError,
        match="lacks a segmentation network: add a stage of activation_aware or segment with `tagmask add-stage`",
    ):
        made.predict(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(RecipeError, match="settings change a recipe that is given by name or file"):
        tagmask.run(data, tmp_path / "run", recipe=recipe, settings=["cam.epochs=1"], device="cpu", quiet=True)
    with pytest.raises(RecipeError, match="seed -1 is negative"):
        tagmask.run(data, tmp_path / "run", recipe=recipe, seed=-1, device="cpu", quiet=True)


def test_held_out_images_of_a_set_with_fewer_classes(data: Path, tmp_path: Path) -> None:
    """Their masks hold the ids of their own class list; they are measured by name."""
    held_out = write_toy(tmp_path / "held")
    (held_out / "tags.csv").write_text("image,tags\n0.png,red\n5.png,\n")
    for i in (0, 5):
        mask = read_label_map(held_out / "masks" / f"{i}.png")
        write_label_map(held_out / "masks" / f"{i}.png", np.where(mask == 3, 1, 0).astype(np.uint8))
    source = tagmask.DataSource(root=str(held_out), masks="masks")
    with pytest.raises(DataError, match=r"tags of held name other classes \(red\) .* in .*held/classes\.txt\."):
        toy_run(data, tmp_path / "run", held_out=source)
    assert not (tmp_path / "run").exists()
    (held_out / "classes.txt").write_text("red\n")
    run = toy_run(data, tmp_path / "run", ["cam.epochs=0", "segment.epochs=0"], held_out=source)
    scores = run.update_report(quiet=True).scores["segment (held)"]
    assert scores.confusion.sum() == 2 * 40 * 48
    ground_truth = sum(int((read_label_map(held_out / "masks" / f"{i}.png") == 1).sum()) for i in (0, 5))
    assert scores.confusion[3].sum() == ground_truth == 13 * 13  # red is class 3 of the run


INFERCAM = ["iterations=1", "scales=[1.0]"]


@pytest.fixture
def copied(run: tagmask.Run, tmp_path: Path) -> tagmask.Run:
    shutil.copytree(run.folder, tmp_path / "run")
    return tagmask.load(tmp_path / "run", device="cpu", workers=0)


def test_added_stages_stay_and_change_nothing_else(copied: tagmask.Run, data: Path) -> None:
    masks = copied.masks_dir
    before = {file.name: file.stat().st_mtime_ns for file in masks.glob("*.png")}
    longer = copied.run_stage("infercam", INFERCAM, quiet=True)
    assert list(longer.recipe.stages) == ["cam", "pseudo_masks", "segment", "infercam"]
    assert longer.maps_dir == copied.folder / "infercam" / "maps"
    again = toy_run(data, copied.folder)  # the command that made the run
    assert list(again.recipe.stages) == list(tagmask.load(copied.folder).recipe.stages) == list(longer.recipe.stages)
    assert {file.name: file.stat().st_mtime_ns for file in masks.glob("*.png")} == before
    assert len(again.write_threshold_report(quiet=True).maps) == 2

    with pytest.raises(RunError, match=r"iterations 1 → 2.*--redo"):
        longer.run_stage("infercam", ["iterations=2", "scales=[1.0]"], quiet=True)
    other = longer.run_stage("infercam", ["iterations=2", "scales=[1.0]"], name="twice", quiet=True)
    assert list(other.recipe.stages)[-2:] == ["infercam", "twice"]
    redone = other.run_stage("infercam", ["iterations=2", "scales=[1.0]"], redo=True, quiet=True)
    assert list(redone.recipe.stages) == list(other.recipe.stages)
    assert {file.name: file.stat().st_mtime_ns for file in masks.glob("*.png")} == before


def test_a_stage_of_an_existing_name_is_replaced_in_place(copied: tagmask.Run) -> None:
    """Later stages depend on it, so other settings need --redo."""
    with pytest.raises(RunError, match=r"cam was made with other settings .*--redo"):
        copied.run_stage("cam", quiet=True)
    assert len(list(copied.masks_dir.glob("*.png"))) == 8


def test_the_data_are_checked_before_a_stage_is_added(copied: tagmask.Run) -> None:
    with pytest.raises(DataError, match=r"no image of .* has a saliency map"):
        copied.run_stage("activation_aware", quiet=True)
    assert not (copied.folder / "activation_aware").exists()


def test_the_threshold_report_needs_all_maps(copied: tagmask.Run) -> None:
    record = read_json(copied.folder / "cam" / "stage.json")
    write_json(copied.folder / "cam" / "stage.json", {**record, "status": "running"})
    with pytest.raises(RunError, match=r"stage 'cam' of .* has not made all its maps yet"):
        copied.write_threshold_report(quiet=True)


def test_a_missing_weights_file_is_reported_at_once(data: Path, tmp_path: Path) -> None:
    """Also that of the last stage, which would run hours later."""
    settings = ["segment.weights=no.safetensors"]
    with pytest.raises(RecipeError, match=r"stage 'segment': weights file no\.safetensors does not exist"):
        tagmask.run(data, tmp_path / "run", recipe="scratch", settings=settings, quiet=True)
    assert not (tmp_path / "run").exists()


def test_changed_saliency_is_noticed_where_it_is_read(tmp_path: Path, toy_images: TaggedImages) -> None:
    def keys(value: int) -> dict[str, dict[str, object]]:
        Image.fromarray(np.full((20, 24), value, np.uint8)).save(tmp_path / "s.png")
        samples = tuple(replace(sample, saliency=tmp_path / "s.png") for sample in toy_images.samples)
        stages = {
            "cam": {},
            "pseudo_masks": {},
            "mine": {"method": "pseudo_masks", "threshold": "per-image"},
            "activation_aware": {},
        }
        recipe = tagmask.Recipe.model_validate({"stages": stages})
        return stage_keys(recipe, replace(toy_images, samples=samples), RunFolder(tmp_path))

    dark, bright = keys(10), keys(200)
    assert [name for name in dark if dark[name] != bright[name]] == ["mine", "activation_aware"]


def test_a_finished_run_returns_without_decoding_or_measuring(
    run: tagmask.Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise AssertionError("a finished run did work again")

    monkeypatch.setattr("tagmask.data.verify.decode_image", fail)
    monkeypatch.setattr("tagmask.api.run_stages", fail)
    monkeypatch.setattr("tagmask.report.update.update_report", fail)
    before = {file: file.stat().st_mtime_ns for file in run.folder.rglob("*")}
    again = toy_run(data, run.folder)
    assert again.classes == run.classes
    assert again.evaluation.scores.keys() == run.evaluation.scores.keys()
    assert {file: file.stat().st_mtime_ns for file in run.folder.rglob("*")} == before


def test_a_finished_run_imports_no_pytorch(run: tagmask.Run, data: Path) -> None:
    code = (
        "import sys; import tagmask; from tests.runs import RECIPE, SETTINGS\n"
        f"source = tagmask.DataSource(root={str(data)!r}, masks='masks')\n"
        f"run = tagmask.run(source, {str(run.folder)!r}, recipe=RECIPE, settings=SETTINGS, device='cpu', quiet=True)\n"
        "assert run.evaluation.scores\n"
        "sys.exit(str(sorted({'torch', 'timm', 'lightning', 'torchmetrics', 'numba'} & set(sys.modules))))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == "[]"


def test_a_finished_run_notices_changes(copied: tagmask.Run, data: Path, tmp_path: Path) -> None:
    """A stage without its record, a changed ground-truth mask and a removed report are all made again."""
    (copied.folder / "segment" / "stage.json").unlink()
    toy_run(data, copied.folder)
    assert (copied.folder / "segment" / "stage.json").exists()
    copied.report.unlink()
    toy_run(data, copied.folder)
    assert copied.report.exists()
    changed = shutil.copytree(data, tmp_path / "changed")
    for mask in (changed / "masks").glob("*.png"):
        write_label_map(mask, np.zeros((40, 48), np.uint8))
    run = toy_run(changed, copied.folder)
    name = f"segment ({changed.name})"
    assert run.evaluation.scores[name].iou[1] in (0, pytest.approx(np.nan, nan_ok=True))


def test_changed_contents_of_an_image_are_noticed(copied: tagmask.Run, data: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(data, tmp_path / "changed")
    toy_run(changed, copied.folder)  # in another place, but the same
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(changed / "3.png")
    with pytest.raises(RunError, match=r"made with other settings \(other images or tags\)"):
        toy_run(changed, copied.folder)


def test_only_new_stages_are_measured(copied: tagmask.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    score_maps = tagmask.evaluate.score_maps

    def record(images: TaggedImages, stage: StageFolder, *arguments: Any) -> Any:
        measured.append(stage.name)
        return score_maps(images, stage, *arguments)

    monkeypatch.setattr("tagmask.evaluate.score_maps", record)
    before = copied.evaluation
    extended = copied.run_stage("infercam", INFERCAM, quiet=True)
    assert measured == ["infercam"]
    after = extended.evaluation
    assert after.scores.keys() == before.scores.keys()
    assert after.to_json()["maps"].items() > before.to_json()["maps"].items()


def test_a_run_folder_of_the_first_version_gives_one_sentence(copied: tagmask.Run, data: Path) -> None:
    write_json(copied.folder / "run.json", {"tagmask": "0.1.0", "sources": {"images": {"root": "x"}, "held_out": None}})
    sentence = r"was made by tagmask 0\.1\.0, whose run folders this version \(.*\) cannot read: choose another --out"
    with pytest.raises(RunError, match=sentence):
        tagmask.load(copied.folder)
    with pytest.raises(RunError, match=sentence):
        toy_run(data, copied.folder)


def test_a_run_shows_itself_in_a_notebook(run: tagmask.Run) -> None:
    html = run._repr_html_()
    assert "segment" in html
    assert "report.html" in html
    assert run.load_maps("6")._repr_png_().startswith(b"\x89PNG")
