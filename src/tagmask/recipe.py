"""Recipes: named stages in order, each a method with its settings, read from YAML."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator

from tagmask.errors import RecipeError
from tagmask.method_modules import method_module, method_names
from tagmask.stage import ARTIFACT_NAMES, ArtifactKind, Method
from tagmask.text import did_you_mean, shorten
from tagmask.yaml_text import MAX_VALUE_DEPTH, MAX_VALUE_LENGTH, dump_yaml, parse_yaml

_STAGE_NAME = re.compile(r"\w[\w-]{0,79}")  # it becomes the name of a folder
_MAX_KEY_DEPTH = 5  # of a --set: stage.setting.setting...
_RESERVED_NAMES = ("held_out", "review")  # folders of a run that are not stages


class Recipe(BaseModel):
    """Named stages in the order in which they run.

    In YAML a stage is `NAME: {method: METHOD, setting: value, ...}`. METHOD is a module of `tagmask.methods` or the
    dotted name of any other module that defines a `Method`; it can be left out if it equals NAME. `inputs` says which
    stages a stage reads from; by default it reads from the latest stage that makes what it needs.

    Attributes:
        description: one line for `tagmask recipes`.
        seed: seeds all random numbers.
        stages: the methods by stage name, with their `inputs` filled in.

    Example:
        >>> recipe = tagmask.load_recipe("small")
        >>> list(recipe.stages)
        ['cam', 'pseudo_masks', 'segment']
        >>> recipe.stages["segment"].inputs
        {'masks': 'pseudo_masks', 'classifier': 'cam'}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    seed: int = Field(0, ge=0, lt=2**32, description="seeds all random numbers")
    stages: dict[str, SerializeAsAny[Method]] = Field(min_length=1)

    @field_validator("stages", mode="before")
    @classmethod
    def _build_methods(cls, stages: Any) -> Any:
        if not isinstance(stages, Mapping):
            raise ValueError("stages must be a mapping of names to settings")
        for name in stages:
            _check_stage_name(str(name))
        return {str(name): _build_method(str(name), settings) for name, settings in stages.items()}

    @field_validator("stages")
    @classmethod
    def _fill_in_inputs(cls, stages: dict[str, Method]) -> dict[str, Method]:
        earlier: dict[str, Method] = {}
        for name, method in stages.items():
            earlier[name] = method.model_copy(update={"inputs": _resolve_inputs(name, method, earlier)})
        return earlier

    def with_seed(self, seed: int) -> Recipe:
        """Return the same recipe with another seed. Raises RecipeError if it is negative."""
        if seed < 0:
            raise RecipeError(f"seed {seed} is negative: give 0 or more.")
        if seed >= 2**32:
            raise RecipeError(f"seed {shorten(str(seed))} is too large: give less than 2^32.")
        return self.model_copy(update={"seed": seed})

    def stages_making(self, kind: ArtifactKind) -> list[str]:
        """Return the names of the stages that make an artifact, in order."""
        return [name for name, method in self.stages.items() if kind in method.made_artifacts()]

    def latest(self, kind: ArtifactKind) -> str | None:
        """Return the name of the last stage that makes an artifact; None if no stage does."""
        return next(reversed(self.stages_making(kind)), None)

    def maps_behind(self, stage: str) -> str | None:
        """Return the stage whose response maps the masks of a stage were cut from, directly or through other masks."""
        inputs = self.stages[stage].inputs
        if "maps" in inputs and "masks" not in inputs:
            return inputs["maps"]
        return self.maps_behind(inputs["masks"]) if "masks" in inputs else None

    def method_of(self, stage: str) -> str:
        """Return the name by which recipes call the method of a stage, e.g. "cam"."""
        return type(self.stages[stage]).__module__.removeprefix("tagmask.methods.")

    def backbone_of(self, stage: str) -> str | None:
        """Return the backbone of a stage's network, or of the classifier that it reads; None if neither names one."""
        method = self.stages[stage]
        initial = method.initial_weights()
        if initial is not None and initial.backbone is not None:
            return initial.backbone
        return self.backbone_of(method.inputs["classifier"]) if "classifier" in method.inputs else None

    def to_yaml(self) -> str:
        """Return the recipe as YAML with every setting."""
        stages = {}
        for name, method in self.stages.items():
            settings = method.model_dump(mode="json")
            if not settings["inputs"]:
                del settings["inputs"]
            stages[name] = {"method": self.method_of(name), **settings}
        head = {"description": self.description, "seed": self.seed}
        return dump_yaml({**head, "stages": stages})


def _check_stage_name(name: str) -> None:
    """Raise ValueError (for pydantic) if a stage, and its folder, cannot have this name."""
    if not _STAGE_NAME.fullmatch(name) or name in _RESERVED_NAMES:
        raise ValueError(f"{shorten(name)!r} cannot be the name of a stage: use at most 80 letters, digits, - and _")


def _resolve_inputs(name: str, method: Method, earlier: Mapping[str, Method]) -> dict[ArtifactKind, str]:
    """Return the stage that each kind of input comes from. Raises ValueError (for pydantic)."""
    required = method.required_inputs()
    if unused := [kind for kind in method.inputs if kind not in required]:
        needs = ", ".join(required) or "no inputs"
        raise ValueError(f"stage {name!r} names an input {unused[0]!r} that its method does not read; it reads {needs}")
    inputs: dict[ArtifactKind, str] = {}
    for kind in required:
        makers = [stage for stage, other in earlier.items() if kind in other.made_artifacts()]
        source = method.inputs.get(kind)
        if source is not None and source not in makers:
            raise ValueError(
                f"stage {name!r} takes {kind} from {shorten(source)!r}, which is not an earlier stage that makes "
                f"{ARTIFACT_NAMES[kind]}{did_you_mean(source, makers)}"
            )
        if not makers:
            raise ValueError(
                f"stage {name!r} needs {ARTIFACT_NAMES[kind]}, which no earlier stage makes; add an earlier stage "
                f"with one of these methods: {', '.join(methods_making(kind))}"
            )
        inputs[kind] = source or makers[-1]
    return inputs


def find_method(name: str) -> type[Method]:
    """Return the method that a module defines; see `method_module`.

    Raises:
        RecipeError: there is no such module, or it does not define exactly one method.
    """
    module = method_module(name)
    methods = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(methods) != 1:
        raise RecipeError(f"module {module.__name__} defines {len(methods)} methods; a stage needs exactly one.")
    return methods[0]


def methods_making(kind: ArtifactKind) -> list[str]:
    """Return the names of the shipped methods that make an artifact."""
    return [name for name in method_names() if kind in find_method(name).makes]


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, e.g. "cam" or "voc/cam"."""
    root = Path(str(resources.files("tagmask"))) / "recipes"
    return sorted(f.relative_to(root).with_suffix("").as_posix() for f in root.rglob("*.yaml"))


def recipe_text(name: str) -> str:
    """Return the text of a shipped recipe, with its comments. Raises RecipeError if there is none of this name."""
    if name not in recipe_names():
        raise RecipeError(f"recipe {name!r} does not exist{did_you_mean(name, recipe_names())}")
    return (Path(str(resources.files("tagmask"))) / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_descriptions() -> dict[str, str]:
    """Return the description of each shipped recipe, without importing any method."""
    return {name: str(parse_yaml(recipe_text(name), name)["description"]) for name in recipe_names()}


def read_recipe_text(name_or_file: str) -> str:
    """Return the YAML of a shipped recipe, or of a file (a path that ends with .yaml or .yml).

    Raises:
        RecipeError: there is no such recipe or file, or the file cannot be read.
    """
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        return recipe_text(name_or_file)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"recipe file {path} does not exist; `tagmask recipes` lists the shipped ones.") from error
    except OSError as error:
        raise RecipeError(f"recipe file {path} cannot be read ({error.strerror}): correct the path.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not YAML: {error}; save it as UTF-8.") from error


def load_recipe(name_or_file: str, settings: Iterable[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a YAML file by path, and change single settings.

    Args:
        name_or_file: e.g. "small", "voc/amn" or "my_recipe.yaml".
        settings: "stage.setting=value" with a YAML value, e.g. "cam.epochs=3"; "seed=1" changes the recipe's seed.

    Raises:
        RecipeError: there is no such recipe, stage, method or setting (the message names the nearest one), the file
            is not YAML, or a value is not valid.

    Example:
        >>> recipe = tagmask.load_recipe("small", ["cam.epochs=3", "pseudo_masks.threshold=0.4"])
        >>> recipe.stages["cam"].epochs
        3
    """
    raw = _read_recipe_mapping(name_or_file)
    for setting in settings:
        _apply_setting(raw, setting)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"recipe {name_or_file}: {_first_error(error, Recipe)}") from error


def read_stage_names(name_or_file: str) -> list[str]:
    """Return the names of the stages of a recipe, without importing any method. Raises RecipeError."""
    return [str(name) for name in _read_recipe_mapping(name_or_file)["stages"]]


def recipe_with_stage(recipe: Recipe, method: str, settings: Iterable[str] = (), name: str | None = None) -> Recipe:
    """Return the recipe with one more stage at its end; a stage of the same name is replaced where it stands.

    Args:
        recipe: the recipe to extend.
        method: the name of the method.
        settings: "setting=value" of the stage.
        name: the name of the stage; None: the last part of the method's name.

    Raises:
        RecipeError: as `load_recipe`, or if the earlier stages do not make what the method needs.
    """
    name = name or method.rpartition(".")[2]
    try:
        _check_stage_name(name)
    except ValueError as error:
        raise RecipeError(f"{error}.") from error
    raw: dict[str, Any] = {"stages": {name: {"method": method}}}
    for setting in settings:
        _apply_setting(raw, f"{name}.{setting}")
    try:
        stages = {**recipe.stages, name: _build_method(name, raw["stages"][name])}
        return Recipe(description=recipe.description, seed=recipe.seed, stages=stages)
    except ValidationError as error:
        raise RecipeError(_first_error(error, Recipe)) from error


def _read_recipe_mapping(name_or_file: str) -> dict[str, Any]:
    raw = parse_yaml(read_recipe_text(name_or_file), f"recipe {name_or_file}")
    if not isinstance(raw, dict) or not isinstance(raw.get("stages"), dict):
        raise RecipeError(f"recipe {name_or_file} has no 'stages' mapping; `tagmask recipes cam` shows an example.")
    return raw


def _build_method(name: str, settings: Any) -> Method:
    if isinstance(settings, Method):
        return settings
    if not isinstance(settings, Mapping | None):
        raise RecipeError(f"stage {name!r} is {shorten(repr(settings))}: write its settings as `name: value` lines.")
    settings = {str(key): value for key, value in (settings or {}).items()}
    method = find_method(str(settings.pop("method", name)))
    try:
        return method.model_validate(settings)
    except ValidationError as error:
        raise RecipeError(f"stage {name!r}: {_first_error(error, method)}") from error


def _apply_setting(raw: dict[str, Any], setting: str) -> None:
    """Change one "stage.setting=value" in the mapping that a recipe's YAML holds."""
    key, equals, text = setting.partition("=")
    title = f"--set {shorten(setting)}:"
    if not equals:
        raise RecipeError(f"{title} write it as stage.setting=value.")
    value = parse_yaml(text, f"{title} the value", max_length=MAX_VALUE_LENGTH, max_depth=MAX_VALUE_DEPTH)
    *parents, last = key.split(".")
    if len(parents) > _MAX_KEY_DEPTH:
        raise RecipeError(f"{title} no setting is nested more than {_MAX_KEY_DEPTH} deep; correct the name.")
    target = raw
    if not parents:
        for name, given in raw["stages"].items():
            method = given.get("method", name) if isinstance(given, dict) else name
            if last in find_method(str(method)).model_fields:
                raise RecipeError(f"{title} name the stage, e.g. {name}.{shorten(setting)}.")
    else:
        if parents[0] not in raw["stages"]:
            hint = did_you_mean(parents[0], raw["stages"])
            raise RecipeError(f"{title} there is no stage {shorten(parents[0])!r}{hint}")
        target = raw["stages"]
    for parent in parents:
        if target.get(parent) is None:
            target[parent] = {}
        target = target[parent]
        if not isinstance(target, dict):
            raise RecipeError(f"{title} {shorten(parent)!r} has no settings of its own.")
    target[last] = value


def _first_error(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first error that pydantic found, as one sentence."""
    first = error.errors()[0]
    location = shorten(".".join(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        known = _model_at(model, first["loc"][:-1]).model_fields
        return f"{location!r} is not a setting{did_you_mean(str(first['loc'][-1]), known)}"
    reason = shorten(first["msg"].removeprefix("Value error, "), 300)
    if first["type"] == "value_error":  # our own errors about stages and whole methods name the place themselves
        return f"{reason}." if location in ("", "stages") else f"{location}: {reason}."
    return f"{location}: {reason} (given: {shorten(repr(first['input']))})."


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the settings class at a location of nested settings."""
    for part in location:
        field = model.model_fields.get(str(part))
        options = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((o for o in options if inspect.isclass(o) and issubclass(o, BaseModel)), model)
    return model
