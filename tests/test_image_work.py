"""Stages with shards hold what single files would, from one process or many, whatever is killed or damaged."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tagmask
from tagmask import image_work, stage_files, stage_shards
from tagmask.artifacts import write_text
from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.data.shard_format import ShardIndex
from tagmask.data.shard_row import ShardRow
from tagmask.errors import DataError, RunError, RunPaused
from tagmask.execution import Execution
from tagmask.label_map import write_label_map
from tagmask.pipeline import run_stages
from tagmask.progress import Reporter
from tagmask.recipe import Recipe
from tagmask.run_folder import RunFolder
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder
from tagmask.stage_shards import StageShard, check_shard, pack_files, unpack_files
from tests.command_processes import CONTEXT
from tests.methods.test_combinations import TOY, images, make_recipe
from tests.methods.tiny_sam import write_sam3
from tests.runs import contents, toy_run, write_toy
from tests.two_processes import run_in_two

__all__ = ["images"]  # a fixture

pytest.importorskip("pyarrow", reason="install tagmask[shards]")
SHARDS = Execution(storage="shards")
IMAGES_PER_SHARD = 3
CHAINS = [  # all methods are tested alone by `MethodContract`
    ("cam", "amn", "irn", "pseudo_masks", "segment"),
    ("cam", "irn"),
    ("cam", "regions", "concept", "activation_aware"),
]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_shards, "IMAGES_PER_SHARD", IMAGES_PER_SHARD)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Weights for the toy settings of the methods that start from some."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOY["concept"], "sam", str(write_sam3(folder / "sam3")))
        yield


def unpacked(run: Path) -> dict[str, Any]:
    """Return the contents of a run without its records, with the files in shards as single files."""
    folder = run.with_name(f"{run.name}-unpacked")
    for path in sorted(run.rglob("*")):
        target = folder / path.relative_to(run)
        if path.suffix == ".parquet":
            stage, kind = path.parents[1], path.parent.name
            number, total = (int(part) for part in path.stem.removeprefix(f"{kind}-").split("-of-"))
            unpack_files(StageShard(kind, number, total), stage, target.parent)  # type: ignore[arg-type]
        elif path.is_file() and not path.name.startswith("."):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return {name: value for name, value in contents(folder).items() if not name.endswith(("stage.json", "log.jsonl"))}


def run_recipe(recipe: Recipe, images: TaggedImages, folder: Path, execution: Execution, **options: Any) -> RunFolder:
    run = RunFolder(folder)
    run_stages(recipe, images, run, compute=Compute(**options), reporter=Reporter(), execution=execution)
    return run


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_shards_hold_the_files_that_single_files_are(
    chain: tuple[str, ...], images: TaggedImages, tmp_path: Path
) -> None:
    changes = {"instances": True} if chain[-1] == "irn" else {}
    recipe = make_recipe(chain, **changes)
    files = run_recipe(recipe, images, tmp_path / "files", Execution(storage="files"))
    shards = run_recipe(recipe, images, tmp_path / "shards", SHARDS)
    assert unpacked(shards.path) == unpacked(files.path)
    for name, method in recipe.stages.items():
        for kind in {"maps", "masks"} & set(method.made_artifacts()):
            folder = shards.stage(name).path / kind
            assert [path.name for path in sorted(folder.iterdir())] == [
                f"{kind}-00000-of-00002.parquet", f"{kind}-00001-of-00002.parquet",
            ]  # fmt: skip


def test_a_run_reads_its_shards(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    files = toy_run(data, tmp_path / "files", execution=Execution(storage="files"))
    shards = toy_run(data, tmp_path / "shards", execution=SHARDS)
    assert unpacked(tmp_path / "shards") == unpacked(tmp_path / "files")  # evaluation and scores, too
    for sample in files.images.read().samples:
        np.testing.assert_array_equal(shards.load_mask(sample.id), files.load_mask(sample.id))
        np.testing.assert_array_equal(shards.load_maps(sample.id).maps, files.load_maps(sample.id).maps)
    for run in (files, shards):
        run.export(tmp_path / f"{run.folder.name}-png", "png", quiet=True)
    assert contents(tmp_path / "shards-png") == contents(tmp_path / "files-png")
    with pytest.raises(RunError, match="has no image 'none'"):
        shards.load_mask("none")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.parquet")}
    toy_run(data, tmp_path / "shards")  # is finished
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.parquet")} == before


def test_a_masks_shard_is_a_data_set_of_hugging_face(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    run = toy_run(write_toy(tmp_path / "data"), tmp_path / "run", execution=SHARDS)
    table = pq.read_table(run.folder / "segment" / "masks" / "masks-00000-of-00003.parquet")
    assert table.column_names == ["id", "mask", "classes"]
    assert table["id"].to_pylist() == ["0", "1", "2"]
    assert b'"_type": "Image"' in table.schema.metadata[b"huggingface"]


def test_parts_make_what_one_process_makes(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    toy_run(data, tmp_path / "whole", execution=SHARDS)
    paused = []

    def step(**how: Any) -> None:
        try:
            toy_run(data, tmp_path / "parts", execution=Execution(**how))
        except RunPaused as error:
            paused.append(str(error))

    for _ in range(3):  # cam, pseudo_masks, segment
        step(prepare=True)
        for number in (1, 2):
            step(part=(number, 2))
    assert len(paused) == 9
    step(prepare=True)  # marks the last stage as done, and writes the report
    assert len(paused) == 9
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert "stage 'cam' is ready to make 3 shards of response maps." in paused[0]
    assert paused[1].startswith("part 1/2 of the response maps of stage 'cam' is made.")


def test_a_part_does_not_begin_a_stage_or_train(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    with pytest.raises(RunPaused, match="stage 'cam' has not begun"):
        toy_run(data, tmp_path / "run", execution=Execution(part=(1, 2)))
    assert not (tmp_path / "run" / "cam").exists()
    with pytest.raises(RunPaused, match="is ready to make 3 shards of response maps"):
        toy_run(data, tmp_path / "run", execution=Execution(prepare=True))
    with pytest.raises(RunError, match="stage 'cam' was made with other settings or images"):
        toy_run(data, tmp_path / "run", ["cam.epochs=1"], execution=Execution(part=(1, 2)))
    with pytest.raises(RunPaused, match="part 1/1"):
        toy_run(data, tmp_path / "run", execution=Execution(part=(1, 1)))
    with pytest.raises(RunPaused, match="stage 'cam' is complete now"):
        toy_run(data, tmp_path / "run", execution=Execution(part=(1, 1)))
    (tmp_path / "run" / "cam" / "classifier.safetensors").unlink()
    with pytest.raises(RunPaused, match="stage 'cam' trains a network now"):
        toy_run(data, tmp_path / "run", execution=Execution(part=(1, 2)))


def test_a_part_does_not_write_the_report(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    run = toy_run(data, tmp_path / "run", execution=SHARDS)
    run.report.unlink()
    with pytest.raises(RunPaused, match="all stages are done"):
        toy_run(data, tmp_path / "run", execution=Execution(part=(1, 2)))
    assert not run.report.exists()


def test_a_stage_with_single_files_is_not_divided(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    run = toy_run(data, tmp_path / "run")
    StageFolder(run.folder / "segment").reopen()
    with pytest.raises(RunError, match="stage 'segment' has begun with single files"):
        toy_run(data, tmp_path / "run", execution=Execution(prepare=True))


def test_values_that_do_not_fit() -> None:
    for how, message in (
        ({"part": (3, 2)}, "part 3/2 does not exist"),
        ({"part": (1, 2), "prepare": True}, "two commands"),
    ):
        with pytest.raises(RunError, match=message):
            Execution(**how)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="leave out --storage files"):
        Execution(storage="files", engine="ray").resolve_storage(10)
    assert Execution().resolve_storage(100_000) == "files"
    assert Execution().resolve_storage(100_001) == "shards"
    assert Execution(prepare=True).resolve_storage(10) == "shards"


def test_a_method_that_writes_single_files_itself_is_refused(images: TaggedImages, tmp_path: Path) -> None:
    from tests.test_pipeline import Maker

    recipe = Recipe.model_construct(stages={"maker": Maker()})
    with pytest.raises(RunError, match=r"writes its maps without context\.make_files"):
        run_recipe(recipe, images, tmp_path / "run", SHARDS)


@pytest.mark.parametrize("damage", ["missing", "cut", "other images", "changed byte"])
def test_a_damaged_shard_is_made_again(damage: str, tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    run = toy_run(data, tmp_path / "run", execution=SHARDS)
    before = contents(run.folder)
    shard = run.folder / "pseudo_masks" / "masks" / "masks-00001-of-00003.parquet"
    content = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(content[: len(content) // 2])
    elif damage == "changed byte":
        shard.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    else:
        shard.write_bytes(shard.with_name("masks-00000-of-00003.parquet").read_bytes())
    toy_run(data, run.folder, execution=SHARDS)
    assert contents(run.folder) == before


def test_reviewed_masks_are_in_the_shards(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    for name in ("files", "shards"):
        run = toy_run(data, tmp_path / name, execution=Execution(storage=name))  # type: ignore[arg-type]
        labels = np.zeros((40, 48), np.uint8)
        labels[5:30, 5:30] = 2
        write_label_map(tmp_path / "reviewed" / "1.png", labels)
        run.import_masks(tmp_path / "reviewed", "png", quiet=True)
        toy_run(data, tmp_path / name)
        np.testing.assert_array_equal(run.load_mask("1"), labels)
    assert unpacked(tmp_path / "shards") == unpacked(tmp_path / "files")


def _run_in_process(compute: Compute, recipe: Recipe, images: TaggedImages, folder: Path) -> None:
    stage_shards.IMAGES_PER_SHARD = IMAGES_PER_SHARD
    run_stages(recipe, images, RunFolder(folder), compute=compute, reporter=Reporter(), execution=SHARDS)


def test_two_processes_give_the_bytes_of_one(images: TaggedImages, tmp_path: Path) -> None:
    recipe = make_recipe(("layercam", "pseudo_masks"))
    run_recipe(recipe, images, tmp_path / "one", SHARDS, precision="float32")
    assert run_in_two(_run_in_process, recipe, images, tmp_path / "two") == [0, 0]
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {name for name in one if name.endswith(".parquet")} == {name for name in two if name.endswith(".parquet")}
    assert len([name for name in one if name.endswith(".parquet")]) == 6


def _run_part(data: Path, out: Path, number: int, count: int) -> None:
    stage_shards.IMAGES_PER_SHARD = 1
    try:
        toy_run(data, out, execution=Execution(part=(number, count)))
    except RunPaused:
        os._exit(0)
    os._exit(1)


@pytest.mark.slow
def test_killed_and_doubled_parts_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_shards, "IMAGES_PER_SHARD", 1)
    data = write_toy(tmp_path / "data")
    toy_run(data, tmp_path / "whole", execution=SHARDS)
    rng = np.random.default_rng(0)
    for _ in range(3):
        with pytest.raises(RunPaused):
            toy_run(data, tmp_path / "parts", execution=Execution(prepare=True))
        killed = [CONTEXT.Process(target=_run_part, args=(data, tmp_path / "parts", 1, 1)) for _ in range(2)]
        for process in killed:
            process.start()
        time.sleep(2 + 3 * rng.random())
        for process in killed:
            if process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        doubled = [CONTEXT.Process(target=_run_part, args=(data, tmp_path / "parts", n, 2)) for n in (1, 2, 2)]
        for process in doubled:
            process.start()
        for process in doubled:
            process.join(120)
        assert [process.exitcode for process in doubled] == [0, 0, 0]
    toy_run(data, tmp_path / "parts", execution=Execution(prepare=True))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert not list((tmp_path / "parts").rglob("*.tmp"))


def test_a_part_beside_the_command_that_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--prepare` does not take the file away that a part is writing."""
    data, out = write_toy(tmp_path / "data"), tmp_path / "run"
    toy_run(data, tmp_path / "whole", execution=SHARDS)
    with pytest.raises(RunPaused):
        toy_run(data, out, execution=Execution(prepare=True))
    encode, encoded = ShardIndex.encode, []

    def prepare_and_encode(index: ShardIndex) -> bytes:
        encoded.append(index)
        if len(encoded) == 1:
            assert list(out.rglob("*.tmp"))
            with pytest.raises(RunPaused):
                toy_run(data, out, execution=Execution(prepare=True))
        return encode(index)

    with monkeypatch.context() as patch:
        patch.setattr(ShardIndex, "encode", prepare_and_encode)
        with pytest.raises(RunPaused, match="part 1/1"):
            toy_run(data, out, execution=Execution(part=(1, 1)))
    assert len(encoded) == 3
    (out / "cam" / "maps" / ".killed.tmp").touch()
    toy_run(data, out, execution=SHARDS)
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.rglob("*.tmp"))


def test_a_part_does_not_mix_old_and_new_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a stage is begun again with --redo, the parts that made it before refuse to write into it."""
    data, out = write_toy(tmp_path / "data"), tmp_path / "run"
    with pytest.raises(RunPaused):
        toy_run(data, out, execution=Execution(prepare=True))
    begun_again = False
    make = image_work.make_shard

    def make_shard(context: StageContext, work: Any, *args: Any) -> None:
        def work_after_redo(part: StageContext) -> None:
            nonlocal begun_again
            work(part)
            if not begun_again:
                begun_again = True
                with pytest.raises(RunPaused):
                    toy_run(data, out, ["cam.scales=[0.5]"], execution=Execution(prepare=True), redo=True)

        make(context, work_after_redo, *args)

    monkeypatch.setattr(image_work, "make_shard", make_shard)
    with pytest.raises(RunError, match="stage 'cam' has begun again with other settings"):
        toy_run(data, out, execution=Execution(part=(1, 1)))
    assert begun_again
    assert not list(out.rglob("*.parquet"))


def test_a_shard_of_other_settings_is_made_again(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    toy_run(data, tmp_path / "other", ["cam.scales=[0.5]"], execution=SHARDS)
    with pytest.raises(RunPaused):
        toy_run(data, tmp_path / "run", execution=Execution(prepare=True))
    (tmp_path / "run" / "cam" / "maps").mkdir()
    name = "cam/maps/maps-00001-of-00003.parquet"
    (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    toy_run(data, tmp_path / "run", execution=SHARDS)
    toy_run(data, tmp_path / "whole", execution=SHARDS)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_single_files_are_not_made_from_shards(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    run = toy_run(data, tmp_path / "run", execution=Execution(storage="files"))
    shutil.rmtree(run.folder / "cam")
    (run.folder / "pseudo_masks" / "masks" / "0.png").unlink()
    with pytest.raises(RunError, match="stage 'pseudo_masks' has begun with single files, but stage 'cam'"):
        toy_run(data, run.folder, execution=SHARDS)
    shutil.rmtree(run.folder / "pseudo_masks")
    toy_run(data, run.folder, execution=SHARDS)
    assert (run.folder / "pseudo_masks" / "masks" / "masks-00000-of-00003.parquet").exists()


@pytest.mark.parametrize("name", ["Screenshot at 3.04\u202fPM", "line\nbreak"])
def test_names_that_shards_cannot_hold_are_refused_before_the_training(name: str, tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data", masks=False)
    (data / "0.png").rename(data / f"{name}.png")
    tags = (data / "tags.csv").read_text().replace("0.png", f'"{name}.png"')
    (data / "tags.csv").write_text(tags, encoding="utf-8")
    source = tagmask.DataSource(root=str(data))
    with pytest.raises(DataError, match="has a name that shards cannot hold: rename it"):
        toy_run(data, tmp_path / "run", source=source, execution=SHARDS)
    assert not (tmp_path / "run" / "cam").exists()


def test_the_next_command_does_not_read_finished_shards_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = write_toy(tmp_path / "data"), []
    for how in ({"prepare": True}, {"part": (1, 1)}, {"prepare": True}):
        with pytest.raises(RunPaused):
            toy_run(data, tmp_path / "run", execution=Execution(**how))  # type: ignore[arg-type]

    def check(shard: StageShard, *args: Any) -> None:
        read.append(shard.path(Path(args[0].name)))
        check_shard(shard, *args)

    monkeypatch.setattr(stage_files, "check_shard", check)
    with pytest.raises(RunPaused):
        toy_run(data, tmp_path / "run", execution=Execution(prepare=True))
    assert read == []  # cam is done, and pseudo_masks has no shard yet


def test_threads_find_rows_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread reads the indexes for all, and 24 bytes per image stay in memory."""
    monkeypatch.setattr(stage_shards, "IMAGES_PER_SHARD", 1000)
    ids = [f"folder/{number:05d}" for number in np.random.default_rng(0).permutation(10_000)]
    path = tmp_path / "file"
    path.write_bytes(b"1")
    for shard in stage_shards.stage_shards("maps", len(ids)):
        pack_files(dict.fromkeys(shard.part_of(ids), path), shard, tmp_path, ("a",), "")
    read, made = stage_shards.read_indexes, []
    monkeypatch.setattr(stage_shards, "read_indexes", lambda *args: made.append(args) or read(*args))
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(partial(stage_shards.find_row, tmp_path, "maps"), [*ids, "folder/none", "folder/00000 "]))
    assert len(made) == 1
    for number, row in enumerate(rows[:-2]):
        assert row == ShardRow(f"{tmp_path}/maps/maps-{number // 1000:05d}-of-00010.parquet", number % 1000, "file")
    assert rows[-2:] == [None, None]
    assert len(pickle.dumps(stage_shards._rows(tmp_path / "maps", "maps", (tmp_path / "maps").stat().st_mtime_ns))) < (
        25 * len(ids)
    )


def test_shards_stay_where_pyarrow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that cannot be read for this reason is not damaged: it must not be removed."""
    data = write_toy(tmp_path / "data")
    toy_run(data, tmp_path / "run", execution=SHARDS)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=shutil.copy)  # all files have other mtimes
    before = contents(tmp_path / "copy")
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("pyarrow")]:
            patch.setitem(sys.modules, name, None)
        with pytest.raises(DataError, match=r"shards need pyarrow; install it with pip install"):
            toy_run(data, tmp_path / "copy")
    assert contents(tmp_path / "copy").items() >= {name: before[name] for name in before if "parquet" in name}.items()


def test_a_full_temporary_folder(images: TaggedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_nothing(context: StageContext) -> None:
        context.folder.file_path("maps", "0").parent.touch()  # a file where the folder would be
        write_text(context.folder.file_path("maps", "0"), "")

    stage = StageFolder(tmp_path / "cam")
    context = StageContext(stage, images, Compute(), Reporter(), {}, seed=0, execution=SHARDS)
    with pytest.raises(RunError, match=r"cannot write .*tagmask-.*; free space there, or set TMPDIR to another folder"):
        context.make_files("maps", lambda _: write_nothing)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(RunError, match=r"cannot write .*missing: No such file.*; set TMPDIR to another folder"):
        context.make_files("maps", lambda _: write_nothing)


def test_an_added_stage_has_the_form_of_the_run(tmp_path: Path) -> None:
    run = toy_run(write_toy(tmp_path / "data"), tmp_path / "run", execution=SHARDS)
    opened = tagmask.load(run.folder, device="cpu", workers=0)
    assert isinstance(opened, tagmask.Run)
    opened.run_stage("layercam", ["scales=[1.0]"], quiet=True)  # reads no shards
    assert (run.folder / "layercam" / "maps" / "maps-00002-of-00003.parquet").exists()
    tagmask.resume(
        run.folder, device="cpu", workers=0, quiet=True, execution=Execution(storage="files")
    )  # all are done
