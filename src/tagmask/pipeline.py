"""Run the stages of a recipe in a run folder. This module knows no method by name."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tagmask.artifacts import digest, write_text
from tagmask.compute import Compute, explain_out_of_memory
from tagmask.data.samples import TaggedImages
from tagmask.errors import DataError, RecipeError, RunError, RunPaused
from tagmask.execution import Execution
from tagmask.expected_times import TimeLeft
from tagmask.image_work import write_missing_reviewed_masks
from tagmask.progress import Reporter
from tagmask.recipe import Recipe, load_recipe
from tagmask.reviews import corrected_tags_entry, describe_changed_reviews, reviewed_masks_entry
from tagmask.run_folder import RunFolder, RunSources
from tagmask.stage import ArtifactKind, Method, StageContext
from tagmask.stage_files import discard_damaged_files, remember_files
from tagmask.stage_folder import MASKS_ENTRY, TAGS_ENTRY, StageFolder, Storage, without_reviews
from tagmask.stage_shards import check_ids, stage_shards
from tagmask.text import pluralize

_MEMORY_ADVICE = (
    "lower its batch_size, crop_size or inference_batch_size (e.g. --set {stage}.batch_size=4), use fewer workers "
    "(--workers), or use a larger machine"
)


def run_stages(
    recipe: Recipe,
    images: TaggedImages,
    folder: RunFolder,
    *,
    compute: Compute,
    reporter: Reporter,
    redo: bool = False,
    execution: Execution | None = None,
    max_steps: int | None = None,
    epoch_size: int | None = None,
    expected_seconds: Mapping[str, float] | None = None,
) -> None:
    """Run every stage that is not done yet, and resume the one that was interrupted.

    A finished stage is resumed, too, if a file of it is missing or damaged. A stage is made again if reviewed masks or
    corrected tags have changed, and nothing else. A reviewed mask is the mask of its image in every stage.

    Args:
        recipe: the stages.
        images: the training images, verified, all with known tags.
        folder: the run folder.
        compute: device and processes.
        reporter: prints messages and progress.
        redo: remove and make again the stages whose settings or inputs have changed.
        execution: how and where the work on single images is done; None: the defaults.
        max_steps: ends every training early (dry runs); None: train completely.
        epoch_size: the number of images of an epoch (dry runs); None: that of `images`.
        expected_seconds: the estimated times of the stages and of what follows them, by name; None: not known.

    Raises:
        RunError: a stage was made with other settings or data, and `redo` is False.
        RunPaused: `execution` says to stop before all stages are done.
    """
    execution = execution or Execution()
    keys = stage_keys(recipe, images, folder)
    if changes := _changed_reviews(keys, folder):
        reporter.info(f"{describe_changed_reviews(list(changes.values()))}: makes {', '.join(changes)} again")
    has_shards = any(folder.stage(name).read_storage() == "shards" for name in keys)
    compute.barrier()  # every process has read the records of all stages
    time_left = TimeLeft(expected_seconds or {})
    for number, (name, key) in enumerate(keys.items(), 1):
        method, stage = recipe.stages[name], folder.stage(name)
        inputs = {kind: folder.stage(source) for kind, source in method.inputs.items()}
        makes = method.made_artifacts()
        title = f"[{number}/{len(recipe.stages)}] {name}"
        if execution.part is None:
            if compute.is_main_process and (files := discard_damaged_files(stage, makes, images, reporter.progress)):
                reporter.info(
                    f"{title}: makes {pluralize(len(files), 'missing or damaged file')} again (first: {files[0]})"
                )
            compute.barrier()
            record = stage.record_with_key(key, redo=redo)
            storage = record.storage if record else _choose_storage(name, inputs, execution, images, has_shards)
            keeps_network = record is None and _keeps_network(method, stage, key)
            is_open = stage.begin(key, compute, redo=redo, storage=storage, keep_network=keeps_network)
            if keeps_network:
                reporter.info(f"{title}: its trained network stays, because only the use of the network changes")
        else:
            is_open = _is_open(stage, key)
        if not is_open:
            if compute.is_main_process and execution.part is None:
                remember_files(folder, {name: makes}, images)
            reporter.info(f"{title}: already done")
            time_left.skip(name)
            continue
        reporter.info(f"{title}{time_left.describe(name)}")
        _announce_download(recipe, name, stage, compute, reporter)
        start = time.time()
        visible = images if MASKS_ENTRY in key else images.without_reviewed_masks()
        own = replace(execution, storage=stage.read_storage())
        if own.storage == "files" and (source := _find_input_in_shards(inputs)):
            raise RunError(
                f"stage {name!r} has begun with single files, but stage {source.name!r}, which it reads, has shards: "
                f"remove {stage.path}, then run the same command again."
            )
        context = StageContext(stage, visible, compute, reporter, inputs, recipe.seed, max_steps, epoch_size, own, key)
        if "masks" in makes and own.storage == "files":
            write_missing_reviewed_masks(context)
        with explain_out_of_memory(f"stage {name!r}", compute.device, _MEMORY_ADVICE.format(stage=name)):
            method.run(context)
            _check_shards(context, makes)
        if execution.part:
            context.require_all_images("is complete")
        stage.mark_done(compute, time.time() - start, len(images))
        if compute.is_main_process:  # so that the next command does not read all files again
            remember_files(folder, {name: makes}, images)
        time_left.finish(name, time.time() - start)


def _keeps_network(method: Method, stage: StageFolder, key: Mapping[str, Any]) -> bool:
    """Whether a stage that is made again can keep its network, which does not depend on what has changed."""
    old, names = stage.read_key_if_any(), method.inference_settings()

    def of_training(key: Mapping[str, Any]) -> dict[str, Any]:
        return {**key, "settings": {name: value for name, value in key["settings"].items() if name not in names}}

    return old is not None and stage.has_network and of_training(old) == of_training(key)


def _choose_storage(
    name: str,
    inputs: Mapping[ArtifactKind, StageFolder],
    execution: Execution,
    images: TaggedImages,
    has_shards: bool,
) -> Storage:
    """Return whether a stage that begins makes files or shards: shards, if what it reads is in shards.

    `has_shards` says whether any stage of the run has shards; then "auto" means shards.

    Raises:
        DataError: it is to make shards, but they cannot hold the id of an image.
        RunError: it is to make files, but reads shards.
    """
    reads_shards = _find_input_in_shards(inputs) is not None
    if reads_shards and execution.storage == "files":
        raise RunError(f"stage {name!r} reads shards of an earlier stage: leave out --storage files.")
    storage = execution.resolve_storage(len(images))
    if reads_shards or (has_shards and execution.storage == "auto"):
        storage = "shards"
    if storage == "shards":
        check_ids(images)
    return storage


def _find_input_in_shards(inputs: Mapping[ArtifactKind, StageFolder]) -> StageFolder | None:
    """Return the folder of the first stage whose maps or masks are in shards; None if there is none."""
    sources = (inputs[kind] for kind in inputs if kind in ("maps", "masks"))
    return next((source for source in sources if source.read_storage() == "shards"), None)


def _check_shards(context: StageContext, makes: Sequence[ArtifactKind]) -> None:
    """Raise RunError if a stage was to make shards, but its method has written single files."""
    for kind in ("maps", "masks") if context.execution.storage == "shards" else ():
        shards = stage_shards(kind, len(context.images)) if kind in makes else []
        if not all(shard.path(context.folder.path).exists() for shard in shards):
            raise RunError(
                f"the method of stage {context.folder.name!r} writes its {kind} without context.make_files, so that "
                "there are no shards of them: run it with --storage files."
            )


def _is_open(stage: StageFolder, key: Mapping[str, Any]) -> bool:
    """Return whether a stage is not done, in a process that works on a part of its images.

    Raises:
        RunPaused: it has not begun.
        RunError: it was made from something else.
    """
    record = stage.read_record_if_any()
    if record is None:
        raise RunPaused(
            f"There is nothing to do for a part of the images: stage {stage.name!r} has not begun. Run the same "
            "command with --prepare in place of --shard."
        )
    if record.key != key:
        raise RunError(
            f"stage {stage.name!r} was made with other settings or images: run the same command with --prepare in "
            "place of --shard first."
        )
    return record.status != "done"


def _announce_download(recipe: Recipe, name: str, stage: StageFolder, compute: Compute, reporter: Reporter) -> None:
    """Say that a stage loads pretrained weights, because without a connection it waits for them for a long time.

    If their license restricts their use, it is named here, and in a file beside the weights that are trained from them.
    """
    weights = recipe.stages[name].initial_weights()
    if not weights or weights.source != "pretrained" or any(stage.path.glob("*.safetensors")):
        return
    from tagmask.models.weights_license import report_restriction, restriction_of_weights  # here: it imports timm

    backbone = recipe.backbone_of(name)
    name_of_weights = backbone or "the backbone"
    reporter.info(f"  loading the pretrained weights of {name_of_weights}; the first time they are downloaded")
    if backbone:
        report_restriction(restriction_of_weights(backbone), stage.path, compute, reporter)


def stage_keys(recipe: Recipe, images: TaggedImages, folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return, for each stage, everything that its results depend on: settings, images and the keys of its inputs.

    What people have reviewed has entries of its own (see `tagmask.reviews`), in the stages that depend on it.

    Args:
        recipe: the stages.
        images: the training images.
        folder: the run folder; settings that an earlier version of tagmask did not record in it count as the defaults.
    """
    keys: dict[str, dict[str, Any]] = {}
    images_key, masks, tags = fingerprint(images), reviewed_masks_entry(images), corrected_tags_entry(images)
    for name, method in recipe.stages.items():
        keys[name] = {
            "method": type(method).__module__,
            "settings": _settings_entry(method, folder.stage(name)),
            "seed": recipe.seed,
            "images": images_key,
            "inputs": {kind: digest(without_reviews(keys[source])) for kind, source in method.inputs.items()},
        }
        if (extra := method.extra_fingerprint(images)) is not None:
            keys[name]["extra"] = extra
        sees_masks = method.uses_reviewed_masks() or any(MASKS_ENTRY in keys[s] for s in method.inputs.values())
        if masks is not None and sees_masks:
            keys[name][MASKS_ENTRY] = masks
        if tags is not None:
            keys[name][TAGS_ENTRY] = tags
    return keys


def _settings_entry(method: Method, stage: StageFolder) -> dict[str, Any]:
    """Return the settings that the results of a stage depend on.

    A setting at its default is left out if the record of the stage does not have it: the stage was made by a version of
    tagmask without this setting, and the default of a new setting changes nothing.
    """
    excluded = {"inputs", *method.free_settings}
    settings = method.model_dump(mode="json", exclude=excluded)
    defaults = type(method).model_construct().model_dump(mode="json", exclude=excluded)
    recorded = (stage.read_key_if_any() or {}).get("settings")
    entry: dict[str, Any] = _as_recorded(settings, defaults, recorded)
    return entry


def _as_recorded(value: Any, default: Any, recorded: Any) -> Any:
    """Return a value without what has its default and is not recorded; where it equals the record, the record.

    So 3 and 3.0 have the same digest.
    """
    if not isinstance(value, dict) or not isinstance(recorded, dict):
        return recorded if value == recorded else value
    defaults = default if isinstance(default, dict) else {}
    is_new = {name for name in value.keys() - recorded.keys() if name in defaults and value[name] == defaults[name]}
    return {
        name: _as_recorded(entry, defaults.get(name), recorded.get(name))
        for name, entry in value.items()
        if name not in is_new
    }


def _changed_reviews(
    keys: Mapping[str, dict[str, Any]], folder: RunFolder
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the old and the new key of each stage with results in which only reviews have changed."""
    changes = {}
    for name, key in keys.items():
        stage = folder.stage(name)
        old = stage.read_key_if_any()
        if old is not None and old != key and without_reviews(old) == without_reviews(key) and stage.has_results:
            changes[name] = (old, key)
    return changes


def expected_times_key(recipe: Recipe, images: TaggedImages, held_out: TaggedImages | None, compute: Compute) -> str:
    """Return a digest of what the time of a run depends on, under which a dry run keeps its estimates."""
    sets = [len(s) for s in (images, held_out) if s is not None]
    return digest([recipe.to_yaml(), fingerprint(images), sets, str(compute.device), compute.world_size])


def fingerprint(images: TaggedImages) -> str:
    """Return a hash of what every stage reads of a data set: classes, ids, tags, sizes and the images' contents.

    It does not depend on what people have reviewed: the tags are those of the data set.
    """
    return digest([images.classes, [(s.id, s.data_tags, s.size, s.digest) for s in images.samples]])


def check_processes(recipe: Recipe, num_processes: int) -> None:
    """Check that all stages can run in so many processes. Raises RecipeError, which names the stage."""
    for name, method in recipe.stages.items():
        try:
            method.check_processes(num_processes)
        except RecipeError as error:
            raise RecipeError(f"stage {name!r}: {error}") from error


def check_stages(recipe: Recipe, images: TaggedImages, folder: RunFolder, *, redo: bool = False) -> None:
    """Check that all stages can run in a run folder, before any of them is changed.

    Raises:
        DataError: the training images have no tags, or lack something that a stage needs.
        RecipeError: the settings of a stage do not fit the classes; or a weights file of a stage that is not done does
            not exist.
        RunError: a stage was made from something else, and `redo` is False.
    """
    _check_tags(images)
    for method in recipe.stages.values():
        method.check_images(images)
    for name, key in stage_keys(recipe, images, folder).items():
        is_new = folder.stage(name).record_with_key(key, redo=redo) is None
        weights = recipe.stages[name].initial_weights()
        if is_new and weights and weights.file and not weights.file.is_file():
            raise RecipeError(f"stage {name!r}: weights file {weights.file} does not exist; correct the path.")


def with_added_stages(recipe: Recipe, images: TaggedImages, folder: RunFolder) -> Recipe:
    """Return the recipe followed by the stages that `Run.run_stage` added to its run folder and that still match."""
    if not folder.recipe_path.exists():
        return recipe
    with suppress(RecipeError):
        saved = load_recipe(str(folder.recipe_path))
        added = {name: method for name, method in saved.stages.items() if name not in recipe.stages}
        extended = Recipe(description=recipe.description, seed=recipe.seed, stages={**recipe.stages, **added})
        for name, key in stage_keys(extended, images, folder).items():
            old = folder.stage(name).read_key_if_any()
            if name in added and (old is None or without_reviews(old) != without_reviews(key)):
                return recipe
        return extended
    return recipe


def write_run_record(
    folder: RunFolder, recipe: Recipe, images: TaggedImages, sources: RunSources, *, redo: bool = False
) -> None:
    """Write `run.json` and `recipe.yaml`, after every check has passed.

    Args:
        folder: the run folder.
        recipe: all stages of the run.
        images: the training images.
        sources: where the images and the held-out images come from.
        redo: stages of other settings may be replaced.

    Raises:
        DataError, RecipeError: as `check_stages`; the folder is left as it was.
        RunError: as `check_stages`, or the folder holds something that is not a run.
    """
    folder.check_usable()
    check_stages(recipe, images, folder, redo=redo)
    folder.write_record(sources, images.classes)
    write_text(folder.recipe_path, recipe.to_yaml())


def _check_tags(images: TaggedImages) -> None:
    untagged = [sample.id for sample in images.samples if sample.tags is None]
    if untagged:
        raise DataError(
            f"the tags of {len(untagged)} training images are unknown (first: {untagged[0]}); add them to the table."
        )
    if not any(sample.tags for sample in images.samples):
        raise DataError(f"no image of {images.name} has a tag, so there is nothing to learn: add tags.")
