"""Measure the time and memory of the dense CRF.

    python benchmarks/dense_crf.py [PHOTOGRAPH] [--big]

Setup and inference are timed on a photograph of 500×375 pixels (default: the test photograph, enlarged) with the unary
energies of a label map and 10 steps, for 3 and 21 labels, and with 1 and 2 threads.

There are two references. The times of the usual C++ implementation are quoted, on one core of the machine this was
written on, because it can no longer be installed. The same mean field with scipy.sparse matrices as filters is measured
in this run. `--big` adds an image of 4,000×3,000 pixels with 3 labels and the memory it takes.
"""

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import sparse

from tagmask.refine.dense_crf import dense_crf, needs_compiling, unary_from_labels
from tagmask.refine.permutohedral import Lattice, build_lattice
from tagmask.refine.threads import Threads

# Seconds of setup and inference by the number of labels; for 21 labels only the total was measured.
QUOTED = {3: (0.12, 0.31), 21: (0.12, 0.73)}
GOLDENS = Path(__file__).parents[1] / "tests" / "goldens" / "dense_crf.npz"


def photograph(path: str | None, width: int = 500, height: int = 375) -> tuple[np.ndarray, np.ndarray]:
    """Return an RGB image [H, W, 3] uint8 and a label map [H, W] uint8 of three labels."""
    goldens = np.load(GOLDENS)
    image = Image.open(path).convert("RGB") if path else Image.fromarray(goldens["cat_image"])
    labels = Image.fromarray(goldens["cat_labels"].clip(0, 2))
    size = (width, height)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)), np.asarray(labels.resize(size, 0))


def best_time(function: Callable[[], object], repeats: int = 7) -> float:
    """Return the shortest of several run times in seconds."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def with_scipy(image: np.ndarray, unary: np.ndarray, steps: int = 10) -> tuple[float, float, np.ndarray]:
    """Run the same mean field with scipy.sparse matrices; return the seconds of setup and inference, and marginals."""
    begin = time.perf_counter()
    num_labels, height, width = unary.shape
    position = np.stack([*np.indices((height, width))[::-1]], -1).reshape(-1, 2).astype(np.float32)
    color = image.reshape(-1, 3).astype(np.float32)
    filters = []
    for weight, features in ((3, position / 3), (10, np.concatenate([position / 50, color / 5], 1))):
        lattice = build_lattice(np.ascontiguousarray(features, np.float32), Threads(1))
        splat, blurs = lattice_matrices(lattice)
        gain = 1 / (1 + 2.0 ** -features.shape[1])
        ones = np.ones((len(features), 1), np.float32)
        norm = 1 / np.sqrt(filter_values(splat, blurs, ones, gain) + 1e-20)
        filters.append((weight, splat, blurs, gain, norm.astype(np.float32)))
    setup = time.perf_counter() - begin
    logits = -unary.reshape(num_labels, -1).T
    q = softmax(logits)
    for _ in range(steps):
        q = softmax(logits + sum(w * n * filter_values(s, b, q * n, g) for w, s, b, g, n in filters))
    return setup, time.perf_counter() - begin - setup, q.T.reshape(unary.shape)


def lattice_matrices(lattice: Lattice) -> tuple[sparse.csr_matrix, list[sparse.csr_matrix]]:
    """Return the splatting matrix [M, N] of a lattice and its blurring matrices [M, M]."""
    m, n = lattice.num_vertices, len(lattice.vertex)
    splat = sparse.csr_matrix((lattice.point_weight, lattice.point, lattice.start), (m, n))
    blurs = []
    for pair in lattice.neighbors:
        rows = np.repeat(np.arange(m), 2)
        exists = pair.ravel() < m
        entries = (np.full(exists.sum(), 0.5, np.float32), (rows[exists], pair.ravel()[exists]))
        blurs.append(sparse.identity(m, np.float32, "csr") + sparse.csr_matrix(entries, (m, m)))
    return splat, blurs


def filter_values(
    splat: sparse.csr_matrix, blurs: list[sparse.csr_matrix], values: np.ndarray, gain: float
) -> np.ndarray:
    """Splat, blur and slice values [N, L]."""
    values = splat @ values
    for blur in blurs:
        values = blur @ values
    return (splat.T @ values) * np.float32(gain)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of each row."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", nargs="?")
    parser.add_argument("--big", action="store_true")
    arguments = parser.parse_args()
    image, labels = photograph(arguments.photograph)
    compiling = needs_compiling()
    first = best_time(lambda: dense_crf(image[:50, :50], unary_from_labels(labels[:50, :50], 3)), 1)
    print(f"first call: {first:.1f} s, the kernels {'compiled' if compiling else 'loaded from the cache'}")
    print(f"{'':34}{'setup':>8}{'inference':>11}{'total':>8}  vs C++ (quoted)  vs scipy (this run)")
    for num_labels in (3, 21):
        unary = unary_from_labels(labels, num_labels)
        setup, inference = QUOTED[num_labels]
        cpp = setup + inference
        print(f"{num_labels:2} labels, C++, quoted, 1 thread     {setup:7.3f}{inference:11.3f}{cpp:8.3f}")
        a, b, plain = with_scipy(image, unary)
        print(f"{num_labels:2} labels, scipy.sparse, 1 thread    {a:7.3f}{b:11.3f}{a + b:8.3f}{cpp / (a + b):13.2f} x")
        for threads in (1, 2):
            total = best_time(partial(dense_crf, image, unary, threads=threads))
            setup = best_time(partial(dense_crf, image, unary, steps=0, threads=threads))
            times = f"{setup:7.3f}{total - setup:11.3f}{total:8.3f}"
            ratios = f"{cpp / total:13.2f} x{(a + b) / total:17.2f} x"
            print(f"{num_labels:2} labels, tagmask, {threads} thread(s)      {times}{ratios}")
        agree = (dense_crf(image, unary).argmax(0) == plain.argmax(0)).mean()
        print(f"{'':10}label maps agree on {agree:.2%} of the pixels")
    print(f"peak memory so far: {peak_memory():.2f} GB")
    if arguments.big:
        image, labels = photograph(arguments.photograph, 4000, 3000)
        seconds = best_time(lambda: dense_crf(image, unary_from_labels(labels, 3), threads=2), 1)
        print(f"4,000×3,000 pixels, 3 labels, 2 threads: {seconds:.1f} s, peak memory {peak_memory():.2f} GB")


def peak_memory() -> float:
    """Return the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
