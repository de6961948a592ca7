"""Options that several commands share.

A group of options is a dataclass. A command takes it as one parameter, and `with_option_groups` replaces this parameter
by the options of the group.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tagmask.compute import Engine, Precision, set_threads

if TYPE_CHECKING:
    from tagmask.data.source import DataSource
    from tagmask.execution import Execution

DATA_PANEL = "Data"
RECIPE_PANEL = "Recipe"
COMPUTE_PANEL = "Computation"
SHARDS_PANEL = "Large data sets and clusters"
OUTPUT_PANEL = "Output"
SETTINGS_PANEL = "Masks and images"
MAX_ROWS = 40  # of a printed table; --json prints all

ImagesArgument = Annotated[
    str,
    typer.Argument(
        help="The folder of the images: with a table of their tags, one folder per class, VOC, COCO; or the folder or "
        "URL of shards."
    ),
]
RunFolderArgument = Annotated[Path, typer.Argument(help="A folder that `tagmask run --out` wrote.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.", rich_help_panel=DATA_PANEL)
]
Device = Annotated[
    str,
    typer.Option(
        help="Where to compute: auto (cuda if there is a GPU, else cpu), cpu, cuda, cuda:N or mps.",
        rich_help_panel=COMPUTE_PANEL,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, show_default="one per core", rich_help_panel=COMPUTE_PANEL,
        help="The number of processes that load images and run CRFs.",
    ),
]  # fmt: skip
EngineOption = Annotated[
    Engine,
    typer.Option(
        metavar="ENGINE", rich_help_panel=SHARDS_PANEL,
        help="Which processes do the work on single images: local (this one and its workers), or ray (actors on the "
        "cluster that RAY_ADDRESS names, or else on this machine; --workers is their number).",
    ),
]  # fmt: skip
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, for scripts.", rich_help_panel=OUTPUT_PANEL)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.", rich_help_panel=OUTPUT_PANEL)]

Competition = Annotated[
    Literal["comp5", "comp6"],
    typer.Option(
        help="In the format voc-server: comp6 permits any training data, comp5 only that of VOC.",
        rich_help_panel=SETTINGS_PANEL,
    ),
]


@dataclass(frozen=True)
class ImageOptions:
    """Options that say how a folder of images is read."""

    tags: Annotated[
        str | None,
        typer.Option(
            help="A table with the columns image and tags (CSV, TSV, JSON Lines, .xlsx), or an export of CVAT (.xml) "
            "or Label Studio (.json). In the layout voc also xml or masks: read the tags from the XML files, or from "
            "the masks.",
            show_default="tags.csv in the folder, if it exists", rich_help_panel=DATA_PANEL,
        ),
    ] = None  # fmt: skip
    image_column: Annotated[
        str | None, typer.Option(help="The column of the table that names the image.", show_default="image",
                                 rich_help_panel=DATA_PANEL),
    ] = None  # fmt: skip
    tags_column: Annotated[
        str | None, typer.Option(help="The column of the table that holds the tags.", show_default="tags",
                                 rich_help_panel=DATA_PANEL),
    ] = None  # fmt: skip
    format: Annotated[
        Literal["auto", "voc", "coco", "yolo", "table", "folders", "images", "shards"],
        typer.Option(
            metavar="LAYOUT", rich_help_panel=DATA_PANEL,
            help="The layout of the images: auto (recognize it), voc, coco, yolo, table, folders, images (no tags) or "
            "shards.",
        ),
    ] = "auto"  # fmt: skip
    split: Annotated[
        str | None,
        typer.Option(
            help="Read only this part of the data, e.g. train: the name of a split, or in the layout voc a list file.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    annotations: Annotated[
        str | None, typer.Option(help="COCO's JSON file of objects (instances_*.json).", rich_help_panel=DATA_PANEL)
    ] = None
    coco_order: Annotated[
        Literal["area", "file"] | None,
        typer.Option(
            help="How COCO's objects are drawn into ground-truth masks: area (the largest first) or file (in the order "
            "of the file, as in published figures).",
            show_default="area", rich_help_panel=DATA_PANEL,
        ),
    ] = None  # fmt: skip
    coco_crowds: Annotated[
        Literal["ignored", "background"] | None,
        typer.Option(
            help="What the pixels of COCO's crowds are in ground-truth masks: ignored, or background (as in published "
            "figures).",
            show_default="ignored", rich_help_panel=DATA_PANEL,
        ),
    ] = None  # fmt: skip
    masks: Annotated[
        str | None,
        typer.Option(
            help="A folder of ground-truth masks (PNG), which are only used for measuring.", rich_help_panel=DATA_PANEL
        ),
    ] = None
    class_list: Annotated[
        str | None,
        typer.Option(
            help="A file of class names, one per line.", show_default="classes.txt in the folder, if it exists",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None  # fmt: skip

    def source(self, root: str) -> DataSource:
        """Return where the images of a folder and their tags come from."""
        from tagmask.data.source import DataSource

        return DataSource(
            root=root, format=self.format, split=self.split, tags=self.tags, annotations=self.annotations,
            coco_order=self.coco_order, coco_crowds=self.coco_crowds, masks=self.masks, class_list=self.class_list,
            image_column=self.image_column, tags_column=self.tags_column,
        )  # fmt: skip

    def non_default_flags(self) -> list[str]:
        """Return the options that do not have their default value, e.g. ["--class-list"]."""
        return [f"--{f.name.replace('_', '-')}" for f in fields(self) if getattr(self, f.name) != f.default]


@dataclass(frozen=True)
class ClassOptions(ImageOptions):
    """Options that say how a folder of images is read, and which classes are kept."""

    classes: Annotated[
        str | None,
        typer.Option(help="Keep only these classes, in this order, e.g. cat,cow.", rich_help_panel=DATA_PANEL),
    ] = None

    def source(self, root: str) -> DataSource:
        """Return where the images of a folder and their tags come from."""
        names = self.classes.split(",") if self.classes else None
        classes = None if names is None else tuple(name.strip() for name in names if name.strip())
        return super().source(root).model_copy(update={"classes": classes})


@dataclass(frozen=True)
class DataOptions(ClassOptions):
    """Options that say how a folder of images is read, with saliency maps and reviewed masks."""

    saliency: Annotated[
        str | None,
        typer.Option(help="A folder of saliency maps, as grayscale PNG files.", rich_help_panel=DATA_PANEL),
    ] = None
    reviewed: Annotated[
        str | None,
        typer.Option(
            help="A folder of masks (PNG) that a person has drawn or corrected, for a part of the images; they are "
            "learned from as ground truth.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Read only so many images, for a quick try; every class occurs in them.",
            show_default="all", rich_help_panel=DATA_PANEL,
        ),
    ] = None  # fmt: skip

    def source(self, root: str) -> DataSource:
        """Return where the images of a folder, their tags, saliency maps and reviewed masks come from."""
        added = {"saliency": self.saliency, "reviewed": self.reviewed, "limit": self.limit}
        return super().source(root).model_copy(update=added)


@dataclass(frozen=True)
class RunDataOptions(DataOptions):
    """Options for the training images and the held-out images of a run."""

    val: Annotated[
        str | None,
        typer.Option(
            help="Held-out images, on which the network is measured: the name of a split, or a folder.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    val_tags: Annotated[
        str | None,
        typer.Option(
            help="A table of held-out images; they can be in the folder of the training images or in their own.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    val_masks: Annotated[
        str | None,
        typer.Option(help="A folder of ground-truth masks of the held-out images.", rich_help_panel=DATA_PANEL),
    ] = None
    val_annotations: Annotated[
        str | None,
        typer.Option(help="COCO's JSON file of objects in the held-out images.", rich_help_panel=DATA_PANEL),
    ] = None
    skip_bad: SkipBad = False

    def held_out_source(self, training: DataSource) -> DataSource | None:
        """Return where the held-out images come from; None if no option names them."""
        from tagmask.data.held_out import held_out_source

        return held_out_source(
            training, self.val, tags=self.val_tags, masks=self.val_masks, annotations=self.val_annotations
        )


@dataclass(frozen=True)
class RecipeOptions:
    """Options that choose a recipe and change its settings."""

    recipe: Annotated[
        str,
        typer.Option(
            help="A recipe that `tagmask recipes` lists, or a YAML file. auto: cam with a GPU, small without one.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = "auto"
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="STAGE.KEY=VALUE", rich_help_panel=RECIPE_PANEL,
            help="Change a setting of the recipe, e.g. cam.epochs=10; can be given several times.",
        ),
    ] = None  # fmt: skip
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="The random seed; the same seed gives the same result.", show_default="that of the recipe",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = None  # fmt: skip

    def run_arguments(self) -> dict[str, Any]:
        """Return the arguments of `tagmask.run` and `tagmask.dry_run`."""
        return {"recipe": self.recipe, "settings": self.set_ or (), "seed": self.seed}


@dataclass(frozen=True)
class ComputeOptions:
    """Options that say where and how to compute."""

    device: Device = "auto"
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="DTYPE", rich_help_panel=COMPUTE_PANEL,
            help="The number format of networks: float32, bfloat16, or auto (bfloat16 where it is faster).",
        ),
    ] = "auto"  # fmt: skip
    workers: Workers = None
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, show_default="one per core", rich_help_panel=COMPUTE_PANEL,
            help="The number of threads of networks and CRFs on a CPU.",
        ),
    ] = None  # fmt: skip

    def run_arguments(self) -> dict[str, Any]:
        """Return the arguments of `tagmask.run`, `tagmask.dry_run` and `tagmask.load`, and set the threads."""
        if self.threads is not None:
            set_threads(self.threads)
        return {"device": self.device, "precision": self.precision, "workers": self.workers}


@dataclass(frozen=True)
class ExecutionOptions:
    """Options that say how the work on single images is divided."""

    storage: Annotated[
        Literal["auto", "files", "shards"],
        typer.Option(
            help="Keep the maps and masks in single files or in parquet shards of 1,000 images; auto: shards if there "
            "are more than 100,000 images, and with --engine ray, --shard and --prepare.",
            rich_help_panel=SHARDS_PANEL,
        ),
    ] = "auto"
    engine: EngineOption = "local"
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", rich_help_panel=SHARDS_PANEL,
            help="For array jobs: make only every N-th shard of the current stage, beginning with the I-th, e.g. 3/8. "
            "Before all parts and after them, run the same command with --prepare instead.",
        ),
    ] = None  # fmt: skip
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare",
            help="Do what cannot be divided, such as training, and stop when --shard can make the shards of a stage.",
            rich_help_panel=SHARDS_PANEL,
        ),
    ] = False  # fmt: skip

    def execution(self, workers: int | None) -> Execution:
        """Return how the work on single images is done."""
        from tagmask.execution import Execution, parse_part

        actors = workers if self.engine == "ray" else None
        return Execution(self.storage, self.engine, actors, parse_part(self.shard), self.prepare)


@dataclass(frozen=True)
class OutputOptions:
    """Options that say what is printed."""

    as_json: AsJson = False
    quiet: Quiet = False

    @property
    def no_progress(self) -> bool:
        """Whether messages and progress are left out."""
        return self.as_json or self.quiet


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command whose type is a dataclass by the fields of the dataclass.

    Typer makes the options from the signature. Calling the command builds the dataclasses from the options.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: p.annotation for name, p in signature.parameters.items() if is_dataclass(p.annotation)
    }

    @functools.wraps(command)
    def call(**arguments: Any) -> None:
        for name, group in groups.items():
            arguments[name] = group(**{field.name: arguments.pop(field.name) for field in fields(group)})
        command(**arguments)

    options: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        options += inspect.signature(groups[name], eval_str=True).parameters.values() if name in groups else [parameter]
    keyword_only = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
    call.__signature__ = signature.replace(parameters=keyword_only)  # type: ignore[attr-defined]
    return call


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
