"""Recipes: reading, changing and validating them, and the error messages."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagmask.errors import RecipeError
from tagmask.method_modules import import_method_module
from tagmask.methods.cam import Cam
from tagmask.recipe import Recipe, find_method, load_recipe, method_names, recipe_names, recipe_text


def write_recipe(folder: Path, text: str) -> str:
    file = folder / "recipe.yaml"
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_survives_a_round_trip_through_yaml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    assert load_recipe(write_recipe(tmp_path, recipe.to_yaml())) == recipe
    assert "#" in recipe_text(name)  # with its comments


CRF = {
    "steps": 10, "gaussian_sxy": 3, "gaussian_weight": 3, "bilateral_sxy": 50, "bilateral_srgb": 5,
    "bilateral_weight": 10,
}  # fmt: skip
MAPS = {"scales": (1.0, 0.5, 1.5, 2.0)}
PUBLISHED: dict[str, dict[str, Any]] = {  # from the papers and their public code
    "cam": {
        **MAPS, "output_stride": 16, "frozen_stride": 8, "freeze_norm": True, "epochs": 5, "batch_size": 16,
        "crop_size": 512, "long_side_range": (320, 640), "optimizer": "sgd", "momentum": 0, "lr": 0.1, "head_lr": 1.0,
        "weight_decay": 1e-4,
    },
    "recam": {
        **MAPS, "epochs": 4, "head_lr": 5e-4, "lr": 5e-5, "weight_decay": 1e-4, "batch_size": 16, "sce_weight": 1.0,
        "map_weights": "product", "keep_sign": False,
    },
    "infercam": {
        **MAPS, "split": True, "buffers": (10, 20), "iterations": 5, "found_threshold": 0.7, "min_growth": 0.02,
        "enlarge": 1.0, "base_method": None,
    },
    "amn": {
        **MAPS, "seeds": {"fg": 0.30, "bg": 0.05, "gt_prob": 0.7, "crf": CRF}, "output_stride": 16, "dropout": 0.1,
        "label_smoothing": 0.4, "epochs": 5, "batch_size": 16, "crop_size": 512,
        "scale_range": (0.5, 1.5),
        "optimizer": "adam",
        "lr": 5e-6, "head_lr": 1e-4, "weight_decay": 1e-4, "renormalize": "seed",
    },
    "irn": {
        "pair_radius": 10, "epochs": 3, "batch_size": 32, "optimizer": "sgd", "lr": 0.1, "displacement_lr": 1.0,
        "walk": {"map_power": 1.0, "radius": 5, "beta": 10, "steps": 256},
    },
    "segment": {
        "architecture": "deeplabv2", "output_stride": 8, "steps": 20_000, "batch_size": 10, "crop_size": 321,
        "optimizer": "sgd", "momentum": 0.9, "lr": 2.5e-4, "head_lr": 2.5e-3, "weight_decay": 5e-4,
        "scale_range": (0.5, 1.5), "scales": (0.5, 0.75, 1.0, 1.25, 1.5), "crf": {"gaussian_weight": 3},
    },
    "activation_aware": {
        "saliency_weight": 0.1, "completion": {"salient": 0.5, "percentile": 90, "active": 0.1},
    },
}  # fmt: skip

LIKE_DEEPLAB_PYTORCH = {
    "loss_scales": (0.75, 0.5), "loss_grid": "logits", "head_bias_lr": 5e-3, "train_norm": False, "freeze_norm": True,
    "scale_choices": (0.5, 0.75, 1.0, 1.25, 1.5), "batch_parts": 2,
}  # fmt: skip


def assert_holds(settings: Any, stated: Any, where: str) -> None:
    if not isinstance(stated, dict):
        assert settings == stated, where
        return
    for name, value in stated.items():
        assert_holds(settings[name], value, f"{where}.{name}")


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_equal_the_papers(name: str) -> None:
    assert_holds(find_method(name)().model_dump(), PUBLISHED[name], name)


@pytest.mark.parametrize("name", [name for name in recipe_names() if "/" in name])
def test_shipped_recipes_equal_the_papers(name: str) -> None:
    """Check every published value, the values that differ on COCO, and the published figures in the comments."""
    place, method = name.split("/")
    seeds = dict(zip(("fg", "bg"), {"recam": (0.35, 0.10), "amn": (0.45, 0.15)}.get(method, (0.30, 0.05)), strict=True))
    own: dict[str, dict[str, Any]] = {
        "cam": {"dilation": "irn", "interpolation": "bicubic"},
        "amn": {"frozen_stride": 2, "dilation": "irn", "interpolation": "bicubic"},
        "infercam": {"interpolation": "bicubic"},
        "irn": {
            "dilation": "irn",
            "interpolation": "bicubic",
            "seeds": seeds,
            "walk": {"map_power": 1.3 if method == "amn" else 1.0},
        },
        "pseudo_masks": {"threshold": {"voc/recam": 0.28, "coco/amn": 0.22}.get(name, 0.25), "refine": "none"},
        "segment": LIKE_DEEPLAB_PYTORCH | {"voc": {}, "coco": {"steps": 100_000}}[place],
        "recam": {"interpolation": "bicubic"}
        | {"voc": {}, "coco": {"batch_size": 6, "sce_weight": 0.1, "map_weights": "first"}}[place],
    }
    if method == "infercam":
        own |= {"cam": {"output_stride": 8, "dilation": "full"}}  # the paper's classifier is a ResNet-38 at stride 8
        own["irn"]["seeds"] = {"alphas": (4, 32), "crf": CRF | {"bilateral_sxy": 80, "bilateral_srgb": 13}}
    if method == "recam":  # its public code freezes the first convolution and its norm only, in both stages
        own["cam"] = {"frozen_stride": 2, "dilation": "irn"}
        own["recam"] |= {"frozen_stride": 2}
    stages = {stage: settings.model_dump() for stage, settings in load_recipe(name).stages.items()}
    assert list(stages) == [
        "cam",
        *{"cam": [], "infercam": ["infercam"]}.get(method, [method]),
        "irn",
        "pseudo_masks",
        "segment",
    ]
    for stage, settings in stages.items():
        changed = own.get(stage, {})
        assert_holds(settings, changed, f"{name}: {stage}")
        assert_holds(
            settings, {k: v for k, v in PUBLISHED.get(stage, {}).items() if k not in changed}, f"{name}: {stage}"
        )
    network = {
        "voc/cam": "63.5", "voc/recam": "68.5", "voc/amn": "69.5", "voc/infercam": "70.8",
        "coco/cam": "42.0", "coco/recam": "42.9 to 45.0", "coco/amn": "44.7",
    }[name]  # fmt: skip
    assert f"{network} (val)" in recipe_text(name).replace("\n# ", " ")
    assert f"--recipe {name} " in recipe_text(name)


def test_every_shipped_method_is_found() -> None:
    for name in method_names():
        assert find_method(name).__module__ == f"tagmask.methods.{name}"
    assert {"cam", "pseudo_masks", "segment"} <= set(method_names())


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


def test_the_crf_can_be_disabled_and_its_steps_set() -> None:
    assert load_recipe("cam", ["pseudo_masks.refine=none"]).stages["pseudo_masks"].model_dump()["refine"] == "none"
    assert load_recipe("cam", ["pseudo_masks.crf.steps=3"]).stages["pseudo_masks"].model_dump()["crf"]["steps"] == 3
    assert load_recipe("cam", ["seed=7"]).seed == 7


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("cam.epoch=3", "stage 'cam': 'epoch' is not a setting: did you mean 'epochs'?"),
        ("pseudo_masks.crf.step=3", "stage 'pseudo_masks': 'crf.step' is not a setting: did you mean 'steps'?"),
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
        ("pseudo_masks.threshold=2", "threshold"),
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
def test_a_wrong_setting_gives_one_sentence(settings: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("cam", ["cam.lr=0.1", settings])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value)[-1] in ".?" or ": choose from " in str(error.value)


def test_an_unknown_recipe_names_the_nearest_one() -> None:
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
        (
            "stages: {camm: }",
            "with `tagmask --import camm` before the command, or `import camm` in Python: did you mean 'cam'?",
        ),
        ("stages: {cam: {method: no.such}}", "method 'no.such' does not exist"),
        ("stages: {cam: {method: ''}}", "method '' does not exist"),
        ("stages: {cam: {method: .cam}}", "method '.cam' does not exist"),
        ("stages: {cam: {method: json}}", "module json defines 0 methods"),
        (
            "stages: {pseudo_masks: }",
            "needs response maps, which no earlier stage makes; add an earlier stage with one of these methods: ",
        ),
        ("stages: {pseudo_masks: , cam: }", "stage 'pseudo_masks' needs response maps, which no earlier stage makes"),
        ("stages: {cam: , segment: }", "stage 'segment' needs masks"),
        ("stages: {../cam: {method: cam}}", "'../cam' cannot be the name of a stage"),
        ("stages: {/etc: {method: cam}}", "'/etc' cannot be the name of a stage"),
        ("stages: {held_out: {method: cam}}", "'held_out' cannot be the name of a stage"),
        ("stages: {'': {method: cam}}", "'' cannot be the name of a stage"),
    ],
)
def test_a_wrong_file_gives_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write_recipe(tmp_path, text))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unreadable_file_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes("stages: {cam: } # é".encode("latin-1"))
    for name, reason in {"folder": "cannot be read", "latin": "is not YAML"}.items():
        with pytest.raises(RecipeError, match=reason):
            load_recipe(str(tmp_path / f"{name}.yaml"))


def test_stages_keep_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "stages: {first: {method: cam}, second: {method: pseudo_masks}, third: {method: pseudo_masks, threshold: 0.5}}"
    )
    recipe = load_recipe(write_recipe(tmp_path, text))
    assert list(recipe.stages) == ["first", "second", "third"]


OWN = """
    from tagmask.stage import Method

    class {name}(Method):
        makes = ("maps",)
        strength: int = 1

        def run(self, context):
            pass
"""


@pytest.mark.parametrize("module", ["own_method", "own.deep.method"])
def test_a_custom_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    file = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(OWN.format(name="Own")))
    monkeypatch.syspath_prepend(str(tmp_path))
    import_method_module(module)
    text = f"stages: {{mine: {{method: {module}, strength: 3}}, pseudo_masks: }}"
    recipe = load_recipe(write_recipe(tmp_path, text), ["mine.strength=4"])
    assert recipe.stages["mine"].model_dump() == {"inputs": {}, "strength": 4}
    assert yaml.safe_load(recipe.to_yaml())["stages"]["mine"]["method"] == module
    assert load_recipe(write_recipe(tmp_path, recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (OWN.format(name="A") + OWN.format(name="B"), "defines 2 methods; a stage needs exactly one"),
        ("import no_such_package", "needs the package 'no_such_package': install it"),
        ("x = ", "cannot be imported (SyntaxError"),
        ("1 / 0", "cannot be imported (ZeroDivisionError"),
    ],
)
def test_a_wrong_custom_method_gives_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sentence: str, request: pytest.FixtureRequest
) -> None:
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError) as error:
        import_method_module(name)
        find_method(name)
    assert sentence in str(error.value)


def test_a_recipe_executes_no_module_that_the_user_has_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on the Python path nor in the current folder."""
    (tmp_path / "foreign.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for stage in ("foreign:", "mine: {method: foreign}", "infercam: {base_method: foreign}"):
        with pytest.raises(RecipeError, match="only if you say so, with `tagmask --import foreign` before the command"):
            load_recipe(write_recipe(tmp_path, f"stages: {{cam: , {stage} }}"))


def test_an_installed_package_can_declare_its_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "grow.py").write_text(textwrap.dedent(OWN.format(name="Grow")))
    (tmp_path / "theirs-1.0.dist-info").mkdir()
    (tmp_path / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (tmp_path / "theirs-1.0.dist-info" / "entry_points.txt").write_text(
        "[tagmask.methods]\ngrow = their_package.grow\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load_recipe(write_recipe(tmp_path, "stages: {cam: , grow: {strength: 2}}"))
    assert type(recipe.stages["grow"]).__module__ == "their_package.grow"
    assert load_recipe(write_recipe(tmp_path, recipe.to_yaml())) == recipe


def test_a_recipe_can_be_made_in_python() -> None:
    recipe = Recipe(stages={"cam": Cam(epochs=1)})
    assert recipe.with_seed(3).seed == 3
    with pytest.raises(RecipeError, match="negative"):
        recipe.with_seed(-1)


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("pseudo_masks", {"threshold": "auto2"}),
        ("pseudo_masks", {"threshold": 30}),
        ("cam", {"long_side_range": [640, 320]}),
        ("cam", {"scales": [1, 0]}),
        ("amn", {"backbone": "resnet5O"}),
        ("amn", {"scale_range": [1.5, 0.5]}),
        ("irn", {"backbone": "resnet5O"}),
        ("irn", {"output_stride": 7}),
        ("recam", {"long_side_range": [320, 0]}),
        ("segment", {"scale_range": [0, 1]}),
        ("infercam", {"scales": []}),
    ],
)
def test_invalid_settings_are_refused(stage: str, setting: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(setting))):
        Recipe.model_validate({"stages": {"cam": {}, "pseudo_masks": {}, stage: setting}})


def test_a_setting_without_a_stage_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"--set epochs=1: name the stage, e\.g\. cam\.epochs=1\.$"):
        load_recipe("small", ["epochs=1"])
    assert load_recipe("small", ["seed=7"]).seed == 7


INPUTS = """
    stages:
      cam:
      recam:
      first: {method: pseudo_masks, inputs: {maps: cam}}
      second: {method: pseudo_masks}
      segment: {inputs: {masks: first, classifier: cam}}
"""


def test_a_stage_reads_the_latest_artifact_or_the_one_it_names(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, INPUTS))
    inputs = {name: method.inputs for name, method in recipe.stages.items()}
    assert inputs == {
        "cam": {},
        "recam": {"classifier": "cam"},
        "first": {"maps": "cam"},
        "second": {"maps": "recam"},
        "segment": {"masks": "first", "classifier": "cam"},
    }
    assert recipe.maps_behind("segment") == "cam"
    assert recipe.maps_behind("second") == "recam"
    assert load_recipe(write_recipe(tmp_path, recipe.to_yaml())) == recipe
    changed = load_recipe(write_recipe(tmp_path, INPUTS), ["second.inputs.maps=cam"])
    assert changed.stages["second"].inputs == {"maps": "cam"}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("second.inputs={maps: cma}", "takes maps from 'cma', which is not an earlier stage that makes response maps"),
        ("second.inputs={maps: cma}", "did you mean 'cam'?"),
        ("first.inputs={maps: second}", "stage 'first' takes maps from 'second', which is not an earlier stage"),
        ("second.inputs={maps: first}", "which is not an earlier stage that makes response maps"),
        ("second.inputs={masks: first}", "names an input 'masks' that its method does not read; it reads maps"),
        ("cam.inputs={maps: cam}", "names an input 'maps' that its method does not read; it reads no inputs"),
        ("second.inputs={map: cam}", "inputs"),
    ],
)
def test_a_wrong_input_gives_one_sentence(tmp_path: Path, setting: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write_recipe(tmp_path, INPUTS), [setting])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
