"""Recipes: what is read, and what is said about mistakes."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagmask.errors import RecipeError
from tagmask.methods.cam import Cam
from tagmask.recipe import Recipe, find_method, load_recipe, method_names, recipe_names, recipe_text


def written(folder: Path, text: str) -> str:
    file = folder / "recipe.yaml"
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_comes_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    assert load_recipe(written(tmp_path, recipe.to_yaml())) == recipe
    assert "#" in recipe_text(name)  # with its comments


CRF = {
    "steps": 10, "gaussian_sxy": 3, "gaussian_weight": 3, "bilateral_sxy": 50, "bilateral_srgb": 5,
    "bilateral_weight": 10,
}  # fmt: skip
MAPS = {"scales": (1.0, 0.5, 1.5, 2.0)}
PUBLISHED: dict[str, dict[str, Any]] = {  # as ../shared/methods.md states them, sections 1 to 8
    "cam": {
        **MAPS, "output_stride": 16, "frozen_stride": 8, "freeze_norm": True, "epochs": 5, "batch_size": 16,
        "crop_size": 512, "long_side_range": (320, 640), "optimizer": "sgd", "momentum": 0, "lr": 0.1, "head_lr": 1.0,
        "weight_decay": 1e-4,
    },
    "recam": {
        **MAPS, "epochs": 4, "head_lr": 5e-4, "lr": 5e-5, "weight_decay": 1e-4, "batch_size": 16, "sce_weight": 1.0,
        "keep_sign": False,
    },
    "infercam": {
        **MAPS, "split": True, "buffers": (10, 20), "iterations": 5, "found": 0.7, "growth": 0.02, "enlarge": 1.0,
        "of": None,
    },
    "amn": {
        **MAPS, "seeds": {"fg": 0.30, "bg": 0.05, "gt_prob": 0.7, "crf": CRF}, "output_stride": 16, "dropout": 0.1,
        "label_smoothing": 0.4, "epochs": 5, "batch_size": 16, "crop_size": 512, "scale": (0.5, 1.5), "optimizer": "adam",
        "lr": 5e-6, "head_lr": 1e-4, "weight_decay": 1e-4, "renormalize": "seed",
    },
    "irn": {
        "pair_radius": 10, "epochs": 3, "batch_size": 32, "optimizer": "sgd", "lr": 0.1, "displacement_lr": 1.0,
        "walk": {"power": 1.0, "radius": 5, "beta": 10, "steps": 256},
    },
    "segment": {
        "architecture": "deeplabv2", "output_stride": 8, "steps": 20_000, "batch_size": 10, "crop_size": 321,
        "optimizer": "sgd", "momentum": 0.9, "lr": 2.5e-4, "head_factor": 10, "weight_decay": 5e-4,
        "scale": (0.5, 1.5), "scales": (0.5, 0.75, 1.0, 1.25, 1.5), "crf": {"gaussian_weight": 3},
    },
    "activation_aware": {
        "saliency_weight": 0.1, "completion": {"salient": 0.5, "percentile": 90, "active": 0.1},
    },
}  # fmt: skip


def assert_holds(settings: Any, stated: Any, where: str) -> None:
    if not isinstance(stated, dict):
        assert settings == stated, where
        return
    for name, value in stated.items():
        assert_holds(settings[name], value, f"{where}.{name}")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_defaults_are_the_papers(name: str) -> None:
    assert_holds(find_method(name)().model_dump(), PUBLISHED[name], name)


@pytest.mark.parametrize("name", [name for name in recipe_names() if "/" in name])
def test_the_papers_settings(name: str) -> None:
    """Every value that is stated, what COCO has otherwise, and the figures to compare with."""
    place, method = name.split("/")
    seeds = dict(zip(("fg", "bg"), {"recam": (0.35, 0.10), "amn": (0.45, 0.15)}.get(method, (0.30, 0.05)), strict=True))
    own: dict[str, dict[str, Any]] = {
        "irn": {"seeds": seeds, "walk": {"power": 1.3 if method == "amn" else 1.0}, "threshold": 0.25},
        "segment": {"voc": {}, "coco": {"steps": 100_000, "crop_size": 481}}[place],
        "recam": {"voc": {}, "coco": {"batch_size": 6, "sce_weight": 0.1}}[place],
    }
    if method == "infercam":
        own |= {"cam": {"output_stride": 8}}  # the paper's classifier is a ResNet-38 with maps at stride 8
    stages = {stage: settings.model_dump() for stage, settings in load_recipe(name).stages.items()}
    assert list(stages) == ["cam", *{"cam": [], "infercam": ["infercam"]}.get(method, [method]), "irn", "segment"]
    for stage, settings in stages.items():
        changed = own.get(stage, {})
        assert_holds(settings, changed, f"{name}: {stage}")
        assert_holds(settings, {k: v for k, v in PUBLISHED[stage].items() if k not in changed}, f"{name}: {stage}")
    network = {
        "voc/cam": "63.5", "voc/recam": "68.5", "voc/amn": "69.5", "voc/infercam": "70.8",
        "coco/cam": "42.0", "coco/recam": "42.9 to 45.0", "coco/amn": "44.7",
    }[name]  # fmt: skip
    assert f"{network} (val)" in recipe_text(name).replace("\n# ", " ")
    assert f"--recipe {name} " in recipe_text(name)


def test_every_method_can_be_found() -> None:
    for name in method_names():
        assert find_method(name).__module__ == f"tagmask.methods.{name}"
    assert {"cam", "crf", "segment"} <= set(method_names())


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        (["cam.epochs=3"], {"epochs": 3}),
        (["cam.lr=1e-3"], {"lr": 0.001}),  # YAML 1.1 has no number 1e-3
        (["cam.scales=[1, 0.5]"], {"scales": (1.0, 0.5)}),
        (["cam.freeze_norm=no"], {"freeze_norm": False}),
        (["cam.options.pad_type=same"], {"options": {"pad_type": "same"}}),
        (["cam.epochs=3", "cam.epochs=4"], {"epochs": 4}),
        (["cam.weights=my=file.pth"], {"weights": "my=file.pth"}),
    ],
)
def test_single_settings_can_be_changed(settings: list[str], change: dict[str, object]) -> None:
    changed, before = load_recipe("cam", settings).stages["cam"], load_recipe("cam").stages["cam"]
    assert changed == before.model_copy(update=change)


def test_the_crf_can_be_switched_off_and_its_steps_set() -> None:
    assert load_recipe("cam", ["crf.crf=null"]).stages["crf"].model_dump()["crf"] is None
    assert load_recipe("cam", ["crf.crf.steps=3"]).stages["crf"].model_dump()["crf"]["steps"] == 3
    assert load_recipe("cam", ["seed=7"]).seed == 7


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("cam.epoch=3", "stage 'cam': 'epoch' is not a setting: did you mean 'epochs'?"),
        ("crf.crf.step=3", "stage 'crf': 'crf.step' is not a setting: did you mean 'steps'?"),
        ("cma.epochs=3", "there is no stage 'cma': did you mean 'cam'?"),
        ("sed=3", "'sed' is not a setting: did you mean 'seed'?"),
        ("cam.epochs=many", "epochs: Input should be a valid integer"),
        ("cam.epochs=-1", "epochs: Input should be greater than or equal to 0"),
        ("cam.epochs=1.5", "epochs: Input should be a valid integer"),
        ("cam.output_stride=4", "output_stride: Input should be 8, 16 or 32"),
        ("cam.backbone=resnet_50", "backbone 'resnet_50' is not a timm model: did you mean 'resnet50'?"),
        ("segment.architecture=Unett", "architecture 'Unett' is not known: did you mean 'Unet'?"),
        ("segment.backbone=resnet_50", "did you mean 'resnet50'?"),
        ("cam.optimizer=sdg", "optimizer: Input should be 'sgd', 'adam' or 'adamw'"),
        ("crf.threshold=2", "threshold"),
        ("cam.scales=[]", "scales"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("seed=x", "seed: Input should be a valid integer"),
        ("cam.epochs", "write it as stage.setting=value"),
        ("cam.epochs=[", "the value is not YAML"),
        ("cam.lr.x=3", "'lr' has no settings of its own"),
        ("cam.=3", "'' is not a setting"),
        ("=3", "'' is not a setting"),
        (".=3", "there is no stage ''"),
        ("stages=3", "stages must be a mapping"),
        ("cam=3", "'cam' is not a setting"),
    ],
)
def test_mistakes_in_a_setting_are_one_sentence(settings: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("cam", ["cam.lr=0.1", settings])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value)[-1] in ".?" or ": known are " in str(error.value)


def test_unknown_recipes_name_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"recipe 'smal' does not exist: did you mean 'small'\?"):
        load_recipe("smal")
    with pytest.raises(RecipeError, match=r"recipe file my\.yaml does not exist"):
        load_recipe("my.yaml")
    for name in ("", "../recipes/cam", "/etc/passwd"):
        with pytest.raises(RecipeError, match="does not exist"):
            load_recipe(name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stages: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("", "has no 'stages' mapping"),
        ("[1, 2]", "has no 'stages' mapping"),
        ("stages: [cam]", "has no 'stages' mapping"),
        ("stages: {}", "stages: Dictionary should have at least 1 item"),
        ("stages: {cam: [1]}", "stage 'cam' is [1]: write its settings"),
        ("stages: {cam: 3}", "stage 'cam' is 3"),
        ("stages: {cam: {1: 2}}", "'1' is not a setting"),
        ("stages: {cam: }\nstage: 3", "'stage' is not a setting: did you mean 'stages'?"),
        ("stages: {camm: }", "method 'camm' does not exist (or is not on PYTHONPATH): did you mean 'cam'?"),
        ("stages: {cam: {method: no.such}}", "method 'no.such' does not exist"),
        ("stages: {cam: {method: ''}}", "method '' cannot be imported"),
        ("stages: {cam: {method: .cam}}", "method '.cam' cannot be imported"),
        ("stages: {cam: {method: json}}", "module json defines 0 methods"),
        (
            "stages: {crf: }",
            "needs response maps, which no stage before it makes; put one before it that does: amn, cam, ",
        ),
        ("stages: {crf: , cam: }", "stage 'crf' needs response maps, which no stage before it makes"),
        ("stages: {cam: , segment: }", "stage 'segment' needs masks"),
        ("stages: {../cam: {method: cam}}", "'../cam' is no name for a stage"),
        ("stages: {/etc: {method: cam}}", "'/etc' is no name for a stage"),
        ("stages: {held_out: {method: cam}}", "'held_out' is no name for a stage"),
        ("stages: {'': {method: cam}}", "'' is no name for a stage"),
    ],
)
def test_mistakes_in_a_file_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(written(tmp_path, text))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes("stages: {cam: } # é".encode("latin-1"))
    for name, reason in {"folder": "cannot be read", "latin": "is not YAML"}.items():
        with pytest.raises(RecipeError, match=reason):
            load_recipe(str(tmp_path / f"{name}.yaml"))


def test_the_order_of_stages_is_the_file_s(tmp_path: Path) -> None:
    text = "stages: {first: {method: cam}, second: {method: crf}, third: {method: crf, threshold: 0.5}}"
    recipe = load_recipe(written(tmp_path, text))
    assert list(recipe.stages) == ["first", "second", "third"]


OWN = """
    from tagmask.stage import Method

    class {name}(Method):
        makes = ("maps",)
        strength: int = 1

        def run(self, work):
            pass
"""


@pytest.mark.parametrize("module", ["own_method", "own.deep.method"])
def test_a_method_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    file = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(OWN.format(name="Own")))
    monkeypatch.syspath_prepend(str(tmp_path))
    text = f"stages: {{mine: {{method: {module}, strength: 3}}, crf: }}"
    recipe = load_recipe(written(tmp_path, text), ["mine.strength=4"])
    assert recipe.stages["mine"].model_dump() == {"strength": 4}
    assert yaml.safe_load(recipe.to_yaml())["stages"]["mine"]["method"] == module
    assert load_recipe(written(tmp_path, recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (OWN.format(name="A") + OWN.format(name="B"), "defines 2 methods; a stage needs exactly one"),
        ("import no_such_package", "needs the package 'no_such_package': install it"),
        ("x = ", "cannot be imported (SyntaxError"),
        ("1 / 0", "cannot be imported (ZeroDivisionError"),
    ],
)
def test_mistakes_in_a_method_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sentence: str, request: pytest.FixtureRequest
) -> None:
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError) as error:
        find_method(name)
    assert sentence in str(error.value)


def test_a_recipe_can_be_made_in_python() -> None:
    recipe = Recipe(stages={"cam": Cam(epochs=1)})
    assert recipe.with_seed(3).seed == 3
    with pytest.raises(RecipeError, match="negative"):
        recipe.with_seed(-1)


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("crf", {"threshold": "auto2"}),
        ("crf", {"threshold": 30}),
        ("cam", {"long_side_range": [640, 320]}),
        ("cam", {"scales": [1, 0]}),
        ("amn", {"backbone": "resnet5O"}),
        ("amn", {"scale": [1.5, 0.5]}),
        ("irn", {"backbone": "resnet5O"}),
        ("irn", {"output_stride": 7}),
        ("recam", {"long_side_range": [320, 0]}),
        ("segment", {"scale": [0, 1]}),
        ("infercam", {"scales": []}),
    ],
)
def test_settings_that_no_network_takes(stage: str, setting: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(setting))):
        Recipe.model_validate({"stages": {"cam": {}, "crf": {}, stage: setting}})


def test_a_setting_is_of_a_stage() -> None:
    with pytest.raises(RecipeError, match=r"--set epochs=1: say of which stage, e\.g\. cam\.epochs=1\.$"):
        load_recipe("small", ["epochs=1"])
    assert load_recipe("small", ["seed=7"]).seed == 7
