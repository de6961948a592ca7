"""YAML of recipes and --set: what no recipe needs is refused in one short sentence, and nothing takes long."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tagmask.errors import RecipeError
from tagmask.recipe import Recipe, load_recipe
from tagmask.yaml_text import MAX_DEPTH, MAX_FILE_LENGTH, dump_yaml, parse_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

HARMFUL: dict[str, str] = {
    "alias bomb": BOMB,
    "cycle": "{a: &x [*x]}",
    "anchor": "&x 1",
    "tag of an integer": '!!int ""',
    "tag of a float": "!!float x",
    "tag of a timestamp": "!!timestamp x",
    "tag of Python": "!!python/object/apply:os.system ['true']",
    "own tag": "!x 1",
    "deep list": "[" * 2_000,
    "deep mapping": "{a: " * 2_000,
    "deep block": "".join(" " * i + "a:\n" for i in range(100)),
    "digits": "9" * 5_000,
    "digits of a sexagesimal number": ":".join(["59"] * 1_000),
    "empty binary number": "0b_",
    "half a character": '"\\ud800"',
    "unhashable key": "{[1]: 2}",
    "two documents": "a\n---\nb",
    "long": "x" * (MAX_FILE_LENGTH + 1),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_yaml_is_refused_at_once(name: str) -> None:
    start = time.process_time()
    with pytest.raises(RecipeError) as error:
        parse_yaml(HARMFUL[name], "recipe x")
    assert time.process_time() - start < 1
    assert str(error.value).startswith("recipe x ")
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2020-99-99", "2020-99-99"), ("2020-01-02", "2020-01-02"), ("=", "="), ("<<", "<<"), ("{<<: 1}", {"<<": 1}),
        ("no", False), ("1e-3", "1e-3"), ("[1, 0.5, a, null]", [1, 0.5, "a", None]), ("0x10", 16), ("", None),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, None), ("ä 😀", "ä 😀"), ("'9999999999999999999999'", "9" * 22),
    ],
)  # fmt: skip
def test_harmless_yaml_is_read(text: str, value: Any) -> None:
    read = parse_yaml(text, "x")
    assert read == value if value is not None else not read or "[[]]" in str(read)


def test_what_is_written_can_be_read(tmp_path: Any) -> None:
    shared = ["ä", 1, 2.5, "2020-01-02", "no", "1e3", "&x", ""]
    value = {"first": shared, "second": shared}
    assert parse_yaml(dump_yaml(value), "x") == value
    assert "&" not in dump_yaml({"first": [1], "second": [1]})


SET: list[str] = [
    'cam.epochs=!!int ""', "cam.epochs=!!float x", "pseudo_masks.threshold=2020-99-99", "cam.options={a: &x [*x]}",
    "cam.epochs=!!timestamp x", "cam.options=" + "[" * 2_000, "cam.epochs=" + "1" * 5_000, "seed=" + "1" * 50,
    "cam.epochs=" + "x" * 5_000, "cam." + "x" * 5_000 + "=1", "x" * 5_000 + ".y=1", "x" * 5_000, "cam.lr=.inf",
    "cam.lr=.nan", "cam.options=" + "{a: " * 15 + "1" + "}" * 15, "cam.options" + ".a" * 2_000 + "=1",
    "cam.scales=[1, .inf]", "pseudo_masks.crf.gaussian_weight=.nan", "cam.weights=" + "x" * 20_000,
    "cam.backbone=" + "x" * 5_000, "cam.inputs={maps: " + "x" * 5_000 + "}", "seed=99999999999999",
    "cam.options=[" + "1, " * 3_000 + "1]", "cam.method=" + "x" * 5_000, "cam.\udcff=1", "cam.epochs=\udcff",
]  # fmt: skip


@pytest.mark.parametrize("setting", SET, ids=lambda setting: ascii(setting[:30]))
def test_a_harmful_setting_gives_one_short_sentence(setting: str) -> None:
    start = time.process_time()
    with pytest.raises(RecipeError) as error:
        load_recipe("small", [setting])
    assert time.process_time() - start < 1
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800


@pytest.mark.parametrize(
    "text",
    [
        "stages: {cam: {method: cam, options: " + "[" * 100 + "]" * 100 + "}}",
        "stages: {" + "x" * 5_000 + ": {method: cam}}",
        "stages: {cam: " + "x" * 5_000 + "}",
        "stages: {cam: {" + "x" * 5_000 + ": 1}}",
        "stages: {cam: {method: " + "x" * 5_000 + "}}",
        "stages: {[1]: 2}",
        BOMB,
    ],
)
def test_a_harmful_recipe_gives_one_short_sentence(tmp_path: Any, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(str(tmp_path / "r.yaml"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_stages_that_are_lists_are_refused_with_a_setting_of_no_stage(tmp_path: Any) -> None:
    (tmp_path / "r.yaml").write_text("stages: {cam: [1]}")
    with pytest.raises(RecipeError, match="name the stage"):
        load_recipe(str(tmp_path / "r.yaml"), ["epochs=1"])


def test_the_deepest_setting_survives_a_round_trip(tmp_path: Any) -> None:
    recipe = load_recipe("small", ["cam.options.a=" + "{a: " * 9 + "1" + "}" * 9])
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(tmp_path / "r.yaml")) == recipe
    assert isinstance(recipe, Recipe)
