"""Write the generated parts of the docs: settings tables, the CLI reference and the list of recipes.

    python docs/generate.py

A generated part is the text between `<!-- NAME -->` and `<!-- /NAME -->` in a page. The rest of the page is written by
hand. A test checks that the parts are current.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import typer.main

from tagmask.cli.commands import app
from tagmask.recipe import find_method, load_recipe, recipe_names
from tagmask.stage import Method

DOCS = Path(__file__).resolve().parent
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def main() -> None:
    """Write the pages that are out of date, and print their names."""
    for page, text in generated_pages().items():
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            print(page.relative_to(DOCS.parent))


def generated_pages() -> dict[Path, str]:
    """Return the current text of every page that has a generated part."""
    parts = {DOCS / "cli.md": ("commands", cli_reference()), DOCS / "recipes.md": ("recipes", recipes_table())}
    for page in sorted((DOCS / "methods").glob("*.md")):
        if page.stem != "index":
            parts[page] = ("settings", settings_table(find_method(page.stem)))
    return {page: replace_part(page.read_text(encoding="utf-8"), *part, page.name) for page, part in parts.items()}


def replace_part(text: str, name: str, content: str, page: str) -> str:
    """Replace what stands between the markers of a part.

    Raises:
        ValueError: The page does not have the two markers exactly once.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} must have the lines {begin} and {end} once.")
    return text.partition(begin)[0] + f"{begin}\n\n{content}\n\n{end}" + text.partition(end)[2]


def settings_table(method: type[Method]) -> str:
    """Return a table of a method's settings; those of nested models have dotted names."""
    schema = method.model_json_schema()
    fields = schema.get("properties", {})
    by_class = (inspect.get_annotations(cls) for cls in method.__mro__)  # the method's own settings come first
    names = [name for name in dict.fromkeys(chain.from_iterable(by_class)) if name in fields]
    own = {name: fields[name] for name in names if name not in Method.model_fields}
    return table(["Setting", "Default", "Type", "Description"], setting_rows(own, schema.get("$defs", {})))


def setting_rows(
    fields: Mapping[str, Any], models: Mapping[str, Any], prefix: str = "", defaults: Mapping[str, Any] | None = None
) -> Iterator[list[str]]:
    """Yield the table rows of the fields of a JSON schema.

    Args:
        fields: The schema's properties.
        models: The schemas of nested models by name.
        prefix: The setting that holds these fields, with a dot.
        defaults: The values that this setting has by default; None: each field's own default.
    """
    for name, field in fields.items():
        default = (defaults or {}).get(name, field.get("default", ""))
        options = field.get("anyOf", field.get("allOf", [field]))
        nested = next((models[option["$ref"].rpartition("/")[2]] for option in options if "$ref" in option), None)
        is_model = nested is not None and "properties" in nested
        shown = "see below" if isinstance(default, dict) and is_model else json_text(default)
        yield [f"`{prefix}{name}`", shown, type_text(field, models), field.get("description", "")]
        if is_model and nested is not None:
            inner = default if isinstance(default, dict) else None
            yield from setting_rows(nested["properties"], models, f"{prefix}{name}.", inner)


def type_text(schema: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """Return the type and the limits of a value in words."""
    if "$ref" in schema:
        model = models[schema["$ref"].rpartition("/")[2]]
        return "settings" if "properties" in model else type_text(model, models)
    for key in ("anyOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(type_text(option, models) for option in schema[key]))
    if "enum" in schema or "const" in schema:
        return ", ".join(json_text(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any value")
    if kind == "array":
        if items := schema.get("prefixItems"):
            return f"{len(items)} × {type_text(items[0], models)}"
        return f"list of {type_text(schema['items'], models)}" if "items" in schema else "list"
    limits = ", ".join(f"{sign} {schema[key]:g}" for key, sign in LIMITS.items() if key in schema)
    if "minimum" in schema and "maximum" in schema:
        limits = f"from {schema['minimum']:g} to {schema['maximum']:g}"
    words = {"object": "mapping", "string": "text", "boolean": "true or false", "null": "null"}
    return f"{words.get(kind, kind)} {limits}".strip()


def json_text(value: object) -> str:
    """Return a value as it is written in a recipe, as code."""
    return "" if value == "" else f"`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


def cli_reference() -> str:
    """Return a section for each command: what it does, its usage, its arguments and options."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(command_section(name, command) for name, command in group.commands.items())


def command_section(name: str, command: Any) -> str:
    """Return the section of one command."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    required = [option_text(p) for p in options if p.required]
    usage = " ".join(["tagmask", name, *map(argument_text, arguments), *required, "[OPTIONS]" if options else ""])
    parts = [f"## {name}", re.sub(r"\s+", " ", command.help or ""), f"```sh\n{usage.strip()}\n```"]
    if arguments:
        rows = [[f"`{argument_text(p)}`", p.help or ""] for p in arguments]
        parts.append(table(["Argument", "Meaning"], rows))
    if options:
        rows = [[f"`{option_text(p)}`", p.help or "", default_text(p)] for p in options]
        parts.append(table(["Option", "Meaning", "Default"], rows))
    return "\n\n".join(parts)


def argument_text(parameter: Any) -> str:
    """Return how an argument stands in a command's usage."""
    name = (parameter.metavar or parameter.name).upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def option_text(parameter: Any) -> str:
    """Return an option's names and the placeholder of its value."""
    names = ", ".join(sorted(parameter.opts, key=len, reverse=True))
    value = parameter.opts[0].lstrip("-").upper().replace("-", "_")
    return names if parameter.is_flag else f"{names} {parameter.metavar or value}"


def default_text(parameter: Any) -> str:
    """Return an option's default value; nothing for flags and for options that are off by default."""
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    is_off = parameter.default is None or parameter.default is False or parameter.default in ((), [])
    return "" if is_off else f"`{parameter.default}`"


def recipes_table() -> str:
    """Return a table of the shipped recipes."""
    recipes = {name: load_recipe(name) for name in recipe_names()}
    rows = [[f"`{name}`", ", ".join(recipe.stages), recipe.description] for name, recipe in recipes.items()]
    return table(["Recipe", "Stages", "Description"], rows)


def table(head: list[str], rows: Iterator[list[str]] | list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([re.sub(r"\||<(?=[a-zA-Z])", r"\\\g<0>", cell) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


if __name__ == "__main__":
    main()
