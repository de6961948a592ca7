"""What a run is: stages in order, each a method with its settings; read from YAML."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator

from tagmask.errors import RecipeError
from tagmask.stage import ARTIFACT_NAMES, ArtifactKind, Method
from tagmask.text import did_you_mean

_STAGE_NAME = re.compile(r"\w[\w-]*")  # it becomes a folder
_TAKEN = ("held_out",)  # folders of a run that are no stages


class Recipe(BaseModel):
    """Named stages in the order in which they run.

    In YAML a stage is `NAME: {method: METHOD, setting: value, ...}`; METHOD is a module of `tagmask.methods`, or
    the name of any other module that defines a `Method`; left out, it is NAME itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    seed: int = Field(0, ge=0, description="of everything random")
    stages: dict[str, SerializeAsAny[Method]] = Field(min_length=1)

    @field_validator("stages", mode="before")
    @classmethod
    def _methods(cls, stages: Any) -> Any:
        if not isinstance(stages, Mapping):
            raise ValueError("stages must be a mapping of names to settings")
        for name in stages:
            if not _STAGE_NAME.fullmatch(str(name)) or name in _TAKEN:
                raise ValueError(f"{name!r} is no name for a stage: use letters, digits, - and _")
        return {str(name): _stage(str(name), settings) for name, settings in stages.items()}

    @field_validator("stages")
    @classmethod
    def _inputs(cls, stages: dict[str, Method]) -> dict[str, Method]:
        made: set[str] = set()
        for name, method in stages.items():
            for kind in method.needs:
                if kind not in made:
                    raise ValueError(
                        f"stage {name!r} needs {ARTIFACT_NAMES[kind]}, which no stage before it makes; put one before it that "
                        f"does: {', '.join(makers(kind))}"
                    )
            made |= set(method.makes)
        return stages

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe with another seed. Raises RecipeError for a negative one."""
        if seed < 0:
            raise RecipeError(f"seed {seed} is negative: give 0 or more.")
        return self.model_copy(update={"seed": seed})

    def to_yaml(self) -> str:
        """The recipe with every setting spelled out."""
        stages = {
            name: {"method": type(method).__module__.removeprefix("tagmask.methods."), **method.model_dump(mode="json")}
            for name, method in self.stages.items()
        }
        head = {"description": self.description, "seed": self.seed}
        return yaml.safe_dump({**head, "stages": stages}, sort_keys=False, allow_unicode=True)


def find_method(name: str) -> type[Method]:
    """The method that a module defines: `tagmask.methods.<name>`, or one of your own by its (dotted) name.

    Raises RecipeError if there is no such module, or no method in it.
    """
    module_name = f"tagmask.methods.{name}" if name in method_names() else name
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise RecipeError(f"method {name!r} needs the package {error.name!r}: install it.") from error
        near = did_you_mean(name, method_names())
        raise RecipeError(f"method {name!r} does not exist (or is not on PYTHONPATH){near}") from error
    except Exception as error:  # whatever a module of the user's own may raise
        raise RecipeError(f"method {name!r} cannot be imported ({type(error).__name__}: {error}).") from error
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        raise RecipeError(f"module {module_name} defines {len(found)} methods; a stage needs exactly one.")
    return found[0]


def method_names() -> list[str]:
    return sorted(f.stem for f in _files("methods", ".py") if not f.stem.startswith("_"))


def makers(kind: ArtifactKind) -> list[str]:
    """The methods that make an artifact."""
    return [name for name in method_names() if kind in find_method(name).makes]


def recipe_names() -> list[str]:
    """The shipped recipes, e.g. "cam" or "voc/cam"."""
    root = Path(str(resources.files("tagmask"))) / "recipes"
    return sorted(str(f.relative_to(root).with_suffix("")) for f in root.rglob("*.yaml"))


def recipe_text(name: str) -> str:
    """A shipped recipe as it stands, with its comments. Raises RecipeError for another name."""
    if name not in recipe_names():
        raise RecipeError(f"recipe {name!r} does not exist{did_you_mean(name, recipe_names())}")
    return (Path(str(resources.files("tagmask"))) / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(name_or_file: str, settings: Iterable[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a YAML file by path, and change single settings.

    Args:
        settings: "stage.setting=value" (the value is YAML), e.g. "cam.epochs=3"; "seed=1" is the recipe's own.

    Raises:
        RecipeError: no such recipe; not YAML; an unknown stage, method or setting (the nearest is named); a bad value.
    """
    path = Path(name_or_file)
    is_file = path.suffix in (".yaml", ".yml")
    if is_file and not path.exists():
        raise RecipeError(f"recipe file {path} does not exist; `tagmask recipes` lists the shipped ones.")
    try:
        text = path.read_text(encoding="utf-8") if is_file else recipe_text(name_or_file)
        raw = yaml.safe_load(text)
    except OSError as error:
        raise RecipeError(f"recipe file {path} cannot be read ({error.strerror}): correct the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {name_or_file} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("stages"), dict):
        raise RecipeError(f"recipe {name_or_file} has no 'stages' mapping; `tagmask recipes cam` shows what one is.")
    for setting in settings:
        _change(raw, setting)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"recipe {name_or_file}: {_sentence(error, Recipe)}") from error


def ready_classifier(name: str, settings: Iterable[str] = ()) -> Recipe:
    """The recipe that makes maps with a timm classifier as it is; `settings` ("setting=value") are of this stage."""
    raw: dict[str, Any] = {"stages": {"pretrained": {"backbone": name}}}
    for setting in settings:
        _change(raw, f"pretrained.{setting}")
    return Recipe(description=f"{name} as it is", seed=0, stages=raw["stages"])


def recipe_with_stage(recipe: Recipe, method: str, settings: Iterable[str] = (), name: str | None = None) -> Recipe:
    """The recipe with one more stage at its end; where there is one of this name, with that in its place.

    Args:
        settings: "setting=value" of the stage.
        name: of the stage; None: the last part of the method's.

    Raises:
        RecipeError: as `load_recipe`, or the stages before it do not make what it needs.
    """
    name = name or method.rpartition(".")[2]
    raw: dict[str, Any] = {"stages": {name: {"method": method}}}
    for setting in settings:
        _change(raw, f"{name}.{setting}")
    try:
        stages = {**recipe.stages, name: _stage(name, raw["stages"][name])}
        return Recipe(description=recipe.description, seed=recipe.seed, stages=stages)
    except ValidationError as error:
        raise RecipeError(_sentence(error, Recipe)) from error


def _stage(name: str, settings: Any) -> Method:
    if isinstance(settings, Method):
        return settings
    if not isinstance(settings, Mapping | None):
        raise RecipeError(f"stage {name!r} is {settings!r}: write its settings as `name: value` lines.")
    settings = {str(key): value for key, value in (settings or {}).items()}
    method = find_method(str(settings.pop("method", name)))
    try:
        return method.model_validate(settings)
    except ValidationError as error:
        raise RecipeError(f"stage {name!r}: {_sentence(error, method)}") from error


def _change(raw: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals:
        raise RecipeError(f"--set {setting}: write it as stage.setting=value.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {setting}: the value is not YAML.") from error
    *path, last = key.split(".")
    target = raw
    if not path:
        for name, given in raw["stages"].items():
            if last in find_method(str((given or {}).get("method", name))).model_fields:
                raise RecipeError(f"--set {setting}: say of which stage, e.g. {name}.{setting}.")
    else:
        if path[0] not in raw["stages"]:
            raise RecipeError(f"--set {setting}: there is no stage {path[0]!r}{did_you_mean(path[0], raw['stages'])}")
        target = raw["stages"]
    for part in path:
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise RecipeError(f"--set {setting}: {part!r} has no settings of its own.")
    target[last] = value


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that pydantic found wrong, in one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _model_at(model, first["loc"][:-1]).model_fields
        return f"{place!r} is not a setting{did_you_mean(str(first['loc'][-1]), known)}"
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":  # ours: those of the stages, and of a method as a whole, say where themselves
        return f"{reason}." if place in ("", "stages") else f"{place}: {reason}."
    return f"{place}: {reason} (given: {first['input']!r})."


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for part in location:
        field = model.model_fields.get(str(part))
        options = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((o for o in options if inspect.isclass(o) and issubclass(o, BaseModel)), model)
    return model


def _files(folder: str, suffix: str) -> list[Path]:
    return sorted((Path(str(resources.files("tagmask"))) / folder).glob(f"*{suffix}"))
