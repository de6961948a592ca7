"""Carries a recipe out in a run folder, stage by stage; knows no method by name."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tagmask
from tagmask.artifacts import digest, read_json, remove_unfinished, write_json, write_text
from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.errors import DataError, RecipeError, RunError
from tagmask.progress import Reporter
from tagmask.recipe import Recipe, load_recipe
from tagmask.stage import ArtifactKind, StageContext

RECORD = "stage.json"
RUN = "run.json"
RECIPE = "recipe.yaml"
WEIGHTS = ("pretrained", "classifier", "none")  # all that a setting `weights` may be, but a file


def run_stages(
    recipe: Recipe,
    images: TaggedImages,
    folder: Path,
    *,
    compute: Compute,
    reporter: Reporter,
    redo: bool = False,
    max_steps: int | None = None,
) -> dict[str, Path]:
    """Run every stage that is not done yet; returns each stage's folder by name.

    A stage whose record matches (same settings, same inputs) is skipped; one that was cut off goes on.

    Args:
        images: the training images, verified; each with its tags known.
        redo: make stages anew whose settings or inputs are no longer those of their record.
        max_steps: of each training, for a rehearsal; None: all.

    Raises:
        RunError: a stage was made with other settings or data, and `redo` was not said.
    """
    inputs: dict[ArtifactKind, Path] = {}
    folders = {}
    keys = stage_keys(recipe, images)
    for number, (name, method) in enumerate(recipe.stages.items(), 1):
        stage = folders[name] = folder / name
        context = StageContext(
            stage,
            images,
            {kind: inputs[kind] for kind in method.needs},
            recipe.seed,
            compute,
            reporter.progress,
            reporter.info,
            max_steps,
        )
        done = claim(stage, keys[name], compute, redo)
        title = f"[{number}/{len(recipe.stages)}] {name}"
        reporter.info(f"{title}: done before" if done else title)
        if not done:
            started = time.time()
            method.run(context)
            finish(stage, compute, time.time() - started, len(images))
        for kind in method.makes:
            inputs[kind] = stage
    return folders


def stage_keys(recipe: Recipe, images: TaggedImages) -> dict[str, dict[str, Any]]:
    """For each stage all that its results depend on: its settings, the images, and its inputs' own keys."""
    keys: dict[str, dict[str, Any]] = {}
    made: dict[ArtifactKind, str] = {}
    for name, method in recipe.stages.items():
        keys[name] = {
            "method": type(method).__module__,
            "settings": method.model_dump(mode="json"),
            "seed": recipe.seed,
            "images": fingerprint(images),
            "inputs": {kind: made[kind] for kind in method.needs},
        }
        if (besides := method.extra_fingerprint(images)) is not None:
            keys[name]["besides"] = besides
        made |= dict.fromkeys(method.makes, digest(keys[name]))
    return keys


def fingerprint(images: TaggedImages) -> str:
    """A hash of what all stages read of a data set: classes, ids, tags, sizes."""
    return digest([images.classes, [(s.id, s.tags, s.size) for s in images.samples]])


def finish(stage: Path, compute: Compute, seconds: float, num_images: int) -> None:
    """Say in a stage's record that all processes are done with it."""
    compute.barrier()
    if compute.is_main_process:
        record = read_json(stage / RECORD)
        total = round(record.get("seconds", 0) + seconds, 1)
        write_json(stage / RECORD, {**record, "status": "done", "seconds": total, "images": num_images})
    compute.barrier()


def is_done(record: Path) -> bool:
    """Whether this is the record of a stage that is finished."""
    return record.exists() and read_json(record)["status"] == "done"


def claim(stage: Path, key: dict[str, Any], compute: Compute, redo: bool) -> bool:
    """Whether the stage is done already; if not, its folder is made ready to begin or to go on in.

    Raises:
        RunError: the folder holds the same stage made from something else than `key`, and `redo` was not said.
    """
    record = read_record(stage, key, redo)
    compute.barrier()  # every process has read the record before the first one writes it
    if record is None and compute.is_main_process:
        _remove(stage)
        versions = {name: version(name) for name in ("torch", "timm", "lightning", "numpy")}
        record = {"status": "running", "key": key, "versions": {"tagmask": tagmask.__version__, **versions}}
        write_json(stage / RECORD, record)
    done = bool(record and record["status"] == "done")
    if compute.is_main_process and not done:
        remove_unfinished(stage)
    compute.barrier()
    return done


def read_record(stage: Path, key: dict[str, Any], redo: bool) -> dict[str, Any] | None:
    """The stage's record; None where there is none of this key. Raises RunError as `claim`."""
    file = stage / RECORD
    record = read_json(file) if file.exists() else None
    if record is None or record.get("key") == key:
        return record
    if not redo and any(made.name != RECORD for made in stage.iterdir()):  # else it was begun, and nothing came of it
        raise RunError(
            f"{stage} was made with other settings ({_difference(record.get('key') or {}, key)}); "
            "choose another --out, or say --redo to make it anew, and what follows from it."
        )
    return None


def _remove(folder: Path) -> None:
    """Remove a folder; whenever this is killed, what has its name is whole or gone."""
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    parts = {"method": "another method", "seed": "another seed", "images": "other images or tags"}
    for part, words in (
        parts | {"besides": "other saliency maps", "inputs": "another input", "network": "another network"}
    ).items():
        if old.get(part) != new.get(part):
            return words
    before, now = old.get("settings", {}), new.get("settings", {})
    changed = [f"{k} {before.get(k)!r} → {now[k]!r}" for k in now if before.get(k) != now[k]]
    return ", ".join(changed[:3]) or "a setting that no longer exists"


def _check_tags(images: TaggedImages) -> None:
    unknown = [sample.id for sample in images.samples if sample.tags is None]
    if unknown:
        raise DataError(
            f"{len(unknown)} training images have no tags known (first: {unknown[0]}); add them to the table."
        )
    if not any(sample.tags for sample in images.samples):
        raise DataError(f"no image of {images.name} has a tag: there is nothing to learn from.")


def check_run_folder(folder: Path) -> None:
    """Raises RunError if the folder holds something that is not a run."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, not a folder: choose another --out.")
    if folder.exists() and not (folder / RUN).exists() and any(not f.name.startswith(".") for f in folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no tagmask run: choose another --out.")


def check_stages(recipe: Recipe, images: TaggedImages, folder: Path, redo: bool = False) -> None:
    """Whether all stages can be carried out in a run folder, before any of them is touched.

    Raises:
        DataError: the images lack what a stage needs.
        RecipeError: a file of weights, of a stage that is not there yet, does not exist.
        RunError: a stage there was made from something else, and `redo` was not said.
    """
    for method in recipe.stages.values():
        method.check(images)
    for name, key in stage_keys(recipe, images).items():
        weights = Path(getattr(recipe.stages[name], "weights", "none"))
        if read_record(folder / name, key, redo) is None and str(weights) not in WEIGHTS and not weights.is_file():
            raise RecipeError(f"stage {name!r}: weights file {weights} does not exist; correct the path.")


def with_added_stages(recipe: Recipe, images: TaggedImages, folder: Path) -> Recipe:
    """The recipe and, after its own, the stages that were added to its run folder (`Run.add`) and still fit it."""
    file = folder / RECIPE
    if not file.exists():
        return recipe
    with suppress(RecipeError):
        added = {name: m for name, m in load_recipe(str(file)).stages.items() if name not in recipe.stages}
        longer = recipe.model_copy(update={"stages": {**recipe.stages, **added}})
        for name, key in stage_keys(longer, images).items():
            if name in added and read_record(folder / name, key, redo=True) is None:
                return recipe
        return longer
    return recipe


def write_run_record(
    folder: Path, recipe: Recipe, images: TaggedImages, sources: dict[str, Any], redo: bool = False
) -> None:
    """Claim a run folder: `run.json` with where the data came from, and `recipe.yaml` with every setting.

    Raises, and leaves the folder as it was:
        RunError: it holds something that is not a run, or stages made from something else and `redo` was not said.
        DataError: there are no tags to learn from, or the images lack something else that a stage needs.
        RecipeError: a file of weights does not exist.
    """
    check_run_folder(folder)
    _check_tags(images)
    check_stages(recipe, images, folder, redo)
    write_json(folder / RUN, {"tagmask": tagmask.__version__, "sources": sources})
    write_text(folder / RECIPE, recipe.to_yaml())
