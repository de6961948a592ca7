"""Measure how long a run of many images takes until its work begins: the first time, and when it is resumed.

The run is stopped in its first training, and then started again with the same command. "verified": the files have been
checked; "training": the first step of the training is done. On a busy machine, the CPU seconds say more than the wall
time; they include the import of PyTorch and other libraries.

Run: python benchmarks/start.py [--images 10000] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SETTINGS = [
    "cam.backbone=test_resnet", "cam.weights=none", "cam.frozen_stride=0", "cam.batch_size=4", "cam.crop_size=32",
    "cam.long_side_range=[32,40]", "cam.checkpoint_minutes=0",
]  # fmt: skip


def write_images(folder: Path, num_images: int) -> None:
    """Write JPEGs of 160×120 pixels, masks and tags.csv."""
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,tags"]
    for i in range(num_images):
        low = rng.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(low).resize((160, 120)).save(folder / f"{i:06}.jpg")
        Image.fromarray(np.full((120, 160), 1 + i % 2, np.uint8)).save(folder / "masks" / f"{i:06}.png")
        lines.append(f"{i:06}.jpg,{('cat', 'dog')[i % 2]}")
    (folder / "tags.csv").write_text("\n".join(lines) + "\n")


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process in seconds."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def start(folder: Path, workers: int) -> dict[str, tuple[float, float]]:
    """Start the run, stop it after its first training steps, and return the wall and CPU seconds until each event."""
    command = [sys.executable, "-m", "tagmask", "run", str(folder), "--masks", "masks", "--recipe", "scratch"]
    command += ["--out", str(folder / "run"), "--workers", str(workers), "--device", "cpu"]
    command += [f"--set={setting}" for setting in SETTINGS]
    checkpoint, log = folder / "run" / "cam" / "training" / "last.ckpt", folder / "log"
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    started = time.perf_counter()
    seconds: dict[str, tuple[float, float]] = {}
    with log.open("w") as output:
        process = subprocess.Popen(command, stderr=output)
        while "training" not in seconds and process.poll() is None:
            time.sleep(0.02)
            now = time.perf_counter() - started, cpu_seconds(process.pid)
            if "verified" not in seconds and "classes (" in log.read_text():
                seconds["verified"] = now
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:  # saved after each step
                seconds["training"] = now
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.wait()
    if "training" not in seconds:
        raise SystemExit(log.read_text())
    return seconds


def main() -> None:
    """Print the seconds of the first start and of three resumed ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images)
        for name in ("first start", "resumed", "resumed", "resumed"):
            seconds = start(Path(folder), arguments.workers)
            print(
                f"{name:12}"
                + "".join(f"  {event}: {s:.1f} s (CPU {cpu:.1f} s)" for event, (s, cpu) in seconds.items()),
                flush=True,
            )


if __name__ == "__main__":
    main()
