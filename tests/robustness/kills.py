"""Kill a small run of every method at random moments, resume it, and compare it with an undisturbed run.

`python -m tests.robustness.kills --kills 200 --seed 0 FOLDER` prints what happened as JSON. One process imports
PyTorch. Every attempt is a fork of it, which takes milliseconds to start.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # before PyTorch is imported

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import tagmask
import tagmask.report.update
from tagmask.recipe import Recipe, method_names
from tests.methods.tiny_sam import write_sam3
from tests.runs import COLORS, contents

SIDE, NUM_IMAGES = 32, 12  # pixels
MAX_KILLS_PER_RUN = 30
MAX_KILLS_AFTER_ALL_STAGES = 3  # of a run: what follows the stages begins anew each time, and would get most kills
AFTER_ALL_STAGES = "measuring and report"
MAX_FAILURES = 5
CPU_LIMIT = 300  # seconds of CPU time of an attempt that is not killed

TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 3, "crop_size": 32, "checkpoint_minutes": 0}
SEGMENT: dict[str, Any] = {**TRAINING, "architecture": "Unet", "scales": [1.0], "crf": {"steps": 1}}
SETTINGS: dict[str, dict[str, Any]] = {
    "cam": {
        **TRAINING, "backbone": "test_resnet", "weights": "none", "frozen_stride": 0, "freeze_norm": False,
        "long_side_range": [32, 40], "scales": [1.0], "options": {"drop_rate": 0.2},
    },
    "recam": {**TRAINING, "long_side_range": [32, 40], "scales": [1.0]},
    "layercam": {"scales": [1.0]},
    "pretrained": {"backbone": "test_resnet", "outputs": {"red": [0], "green": [1], "blue": [2]}, "scales": [1.0]},
    "infercam": {"scales": [1.0], "iterations": 2, "inputs": {"classifier": "cam"}},
    "amn": {**TRAINING, "dropout": 0.5, "seeds": {"crf": None}, "scales": [1.0], "inputs": {"classifier": "cam"}},
    "affinity": {"of": "features", "inputs": {"maps": "cam", "classifier": "cam"}},
    "irn": {
        **TRAINING, "seeds": {"crf": {"steps": 1}}, "pair_radius": 2, "walk": {"steps": 16}, "instances": True,
        "inputs": {"classifier": "cam"},
    },
    "pseudo_masks": {"crf": {"steps": 1}},
    "regions": {"region_sizes": [20], "crf": {"steps": 1}},
    "concept": {"classes": ["red", "blue"], "inputs": {"maps": "cam"}},
    "segment": {**SEGMENT, "architecture": "DeepLabV3Plus", "inputs": {"classifier": "cam"}},
    "activation_aware": {**SEGMENT, "inputs": {"classifier": "cam", "masks": "pseudo_masks"}},
}  # fmt: skip


def write_images(folder: Path) -> Path:
    """Write tagged images with masks and saliency maps; three of the masks are given as reviewed ones, too."""
    lines = ["image,tags"]
    for name in ("images", "masks", "saliency", "reviewed"):
        (folder / name).mkdir(parents=True)
    for i in range(NUM_IMAGES):
        rng = np.random.default_rng(i)
        image = rng.integers(90, 130, (SIDE, SIDE, 3)).astype(np.uint8)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        tags = sorted({list(COLORS)[i % 3], list(COLORS)[i // 4]}) if i else []
        for tag in tags:
            label = sorted(COLORS).index(tag) + 1
            y, x = int(rng.integers(0, SIDE - 10)), 1 + 10 * (label - 1)
            image[y : y + 10, x : x + 10] = COLORS[tag]
            labels[y : y + 10, x : x + 10] = label
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{i}.png")
        if i % 4 == 1:
            Image.fromarray(labels).save(folder / "reviewed" / f"{i}.png")
        Image.fromarray((labels > 0).astype(np.uint8) * 255).save(folder / "saliency" / f"{i}.png")
        lines.append(f"{i}.png,{';'.join(tags)}")
    (folder / "tags.csv").write_text("\n".join(lines) + "\n")
    return folder


def make_recipe(folder: Path) -> Recipe:
    """Return a recipe of every method, in an order in which each has its inputs."""
    weights = folder / "weights.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    if missing := set(method_names()) - set(SETTINGS):
        raise SystemExit(f"add toy settings of {', '.join(sorted(missing))} to SETTINGS in {__file__}")
    settings = {
        **SETTINGS,
        "pretrained": {**SETTINGS["pretrained"], "weights": str(weights)},
        "concept": {**SETTINGS["concept"], "sam": str(write_sam3(folder / "sam3"))},
    }
    return Recipe.model_validate({"stages": {name: {"method": name, **values} for name, values in settings.items()}})


def fork(action: Callable[[], object]) -> int:
    """Run an action in a forked process and return its id; the exit status is 0, or 1 if the action raises."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, cpu_limit: float) -> int | None:
    """Wait until a process ends or has used `cpu_limit` seconds of CPU time, which a busy machine does not change.

    Returns:
        The status as of `os.waitpid`; None if the process still runs.
    """
    stat, ticks = Path(f"/proc/{pid}/stat"), os.sysconf("SC_CLK_TCK")
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        if (int(user) + int(system)) / ticks >= cpu_limit:
            return None
        time.sleep(0.005)


def interrupted_stage(folder: Path) -> str:
    """Return what a run was doing when it was killed: a stage, or what comes before or after all stages."""
    if not (folder / "recipe.yaml").exists():
        return "reading the data"
    for name in SETTINGS:
        record = folder / name / "stage.json"
        if not record.exists() or json.loads(record.read_text())["status"] != "done":
            return name
    return AFTER_ALL_STAGES


def campaign(folder: Path, num_kills: int, seed: int, seconds: float = math.inf) -> dict[str, Any]:
    """Kill and resume runs until `num_kills` kills have been made, or `seconds` are over; return what happened."""
    end = time.monotonic() + seconds
    data, rng, recipe = write_images(folder / "data"), random.Random(seed), make_recipe(folder)
    source = tagmask.DataSource(
        root=str(data / "images"), tags=str(data / "tags.csv"), masks=str(data / "masks"),
        saliency=str(data / "saliency"), reviewed=str(data / "reviewed"),
    )  # fmt: skip

    def run(out: Path) -> int:
        arguments: dict[str, Any] = {"recipe": recipe, "device": "cpu", "workers": 0, "quiet": True}
        return fork(lambda: tagmask.run(source, out, **arguments))

    if wait(run(folder / "undisturbed"), CPU_LIMIT) != 0:
        raise SystemExit("the undisturbed run failed")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    duration = used.ru_utime + used.ru_stime
    expected = contents(folder / "undisturbed")
    failures: list[str] = []
    interval = 2 * duration / 10
    stages: Counter[str] = Counter()
    num_done = num_runs = 0
    while num_done < num_kills and time.monotonic() < end and len(failures) < MAX_FAILURES:
        out, num_runs, num_late = folder / f"run{num_runs}", num_runs + 1, 0
        for _ in range(min(MAX_KILLS_PER_RUN, num_kills - num_done)):
            pid = run(out)
            status = wait(pid, rng.uniform(0, interval))
            if status is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                num_done += 1
                stages[stage := interrupted_stage(out)] += 1
                num_late += stage == AFTER_ALL_STAGES
                if num_late == MAX_KILLS_AFTER_ALL_STAGES:
                    break
            elif status:
                failures.append(f"run {num_runs} failed after {num_done} kills, in {interrupted_stage(out)}")
                break
            else:
                break
        pid = run(out)
        if (status := wait(pid, CPU_LIMIT)) is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if status != 0:
            failures.append(f"the last attempt of run {num_runs} {'hung' if status is None else 'failed'}")
            continue
        found = contents(out)
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if differing:
            failures.append(f"run {num_runs}: {len(differing)} files differ, first {differing[:5]}")
        if left := [str(file.relative_to(out)) for file in out.rglob("*.tmp")]:
            failures.append(f"run {num_runs} left {left[:3]}")
        shutil.rmtree(out)
    return {
        "seed": seed, "kills": num_done, "runs": num_runs, "files": len(expected), "seconds": round(duration, 1),
        "stages": dict(stages), "failures": failures,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no further run after this time")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(campaign(given.folder, given.kills, given.seed, given.seconds)))
