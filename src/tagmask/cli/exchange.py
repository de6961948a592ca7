"""Commands that exchange masks with other tools: export and import."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from tagmask.cli.options import SETTINGS_PANEL, Competition, Quiet, RunFolderArgument
from tagmask.corrections.formats import IMPORT_FORMATS
from tagmask.deploy.formats import NETWORK_FORMATS
from tagmask.outputs.formats import OUTPUT_FORMATS

_DESCRIPTIONS = "; ".join(f"{name} ({format.description})" for name, format in OUTPUT_FORMATS.items())
_NETWORK_DESCRIPTIONS = "; ".join(f"{name} ({description})" for name, description in NETWORK_FORMATS.items())
_IMPORT_DESCRIPTIONS = "; ".join(f"{name} ({description})" for name, description in IMPORT_FORMATS.items())


@dataclass(frozen=True)
class ExportOptions:
    """Options of `tagmask.outputs.settings.ExportSettings`."""

    min_area: Annotated[
        int | None,
        typer.Option(
            help="Connected regions and holes with fewer pixels become part of their surroundings.",
            show_default="0.1 % of the image's pixels for polygons, else 0", rich_help_panel=SETTINGS_PANEL,
        ),
    ] = None  # fmt: skip
    simplify: Annotated[
        float | None,
        typer.Option(
            help="Tolerance of polygons in pixels: smaller details vanish. 0: exact, along the edges of the pixels.",
            show_default="0.5 % of the long side", rich_help_panel=SETTINGS_PANEL,
        ),
    ] = None  # fmt: skip
    fill_holes: Annotated[
        bool,
        typer.Option(
            "--fill-holes", help="Fill holes in a class with this class.", rich_help_panel=SETTINGS_PANEL
        ),
    ] = False  # fmt: skip
    images: Annotated[
        Literal["copy", "link", "none"] | None,
        typer.Option(
            help="In formats with a place for the images: copy them, link them, or leave them out.",
            show_default="copy in formats that need them", rich_help_panel=SETTINGS_PANEL,
        ),
    ] = None  # fmt: skip
    subset: Annotated[
        str | None,
        typer.Option(
            help="The name of the set in files and folders.", show_default="train; test in voc-server",
            rich_help_panel=SETTINGS_PANEL,
        ),
    ] = None  # fmt: skip
    competition: Competition = "comp6"


def export(
    run_folder: RunFolderArgument,
    *,
    out: Annotated[Path, typer.Option(help="The folder to write to; each format gets its own folder there.")],
    format: Annotated[
        str,
        typer.Option(help=f"The format of the masks: {_DESCRIPTIONS}. Or of the network: {_NETWORK_DESCRIPTIONS}."),
    ] = "png",
    stage: Annotated[
        str | None,
        typer.Option(
            help="The stage whose masks are written, or whose network.",
            show_default="reviewed masks, else those of the recommended stage; the last network",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Export the masks that exist, even if the stage is not finished.")
    ] = False,
    options: ExportOptions,
    quiet: Quiet = False,
) -> None:
    """Write the masks of a run's training images, or its network, in a format that other tools read.

    An exported ONNX file sees each image once, at its own size: it has no CRF, and no other scales or flips. `tagmask
    predict RUN --single-pass` does the same with PyTorch.
    """
    from tagmask.api import load_run

    opened = load_run(run_folder, device="cpu")
    path = opened.export(out, format, stage=stage, partial=partial, quiet=quiet, **asdict(options))
    if not quiet:
        print(path)


def import_(
    run_folder: RunFolderArgument,
    corrected: Annotated[Path, typer.Argument(help="A zip archive, a folder or a file with the corrected masks.")],
    *,
    format: Annotated[str, typer.Option(help=f"The format: {_IMPORT_DESCRIPTIONS}.")],
    stage: Annotated[
        str | None, typer.Option(help="The stage whose masks were exported.", show_default="the recommended one")
    ] = None,
    only_changed: Annotated[
        bool, typer.Option("--only-changed", help="Leave out masks without a change; else they count as accepted.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Bring corrected masks back from an annotation tool: the run keeps them as reviewed masks (in review/)."""
    from tagmask.api import load_run

    opened = load_run(run_folder, device="cpu")
    imported = opened.import_masks(corrected, format, stage=stage, only_changed=only_changed, quiet=quiet)
    if not quiet:
        print(imported)
