"""Speed and memory of the dense CRF.

    python benchmarks/dense_crf.py [PHOTOGRAPH] [--big]

On a photograph of 500×375 (default: the test photograph, enlarged), label mode, 10 steps: set-up and inference, 3 and
21 labels, 1 and 2 threads. Two references: the usual C++ implementation, whose figures are quoted (one core of the
machine this was written on; it no longer installs), and the same mean field with its filters as a sparse matrix in
scipy, measured in this run. `--big` adds 4,000×3,000 pixels with 3 labels and the memory it takes.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import sparse

from tagmask.refine.dense_crf import dense_crf, needs_compiling, unary_from_labels
from tagmask.refine.permutohedral import Lattice, build
from tagmask.refine.threads import Threads

QUOTED = {3: (0.12, 0.31), 21: (0.12, 0.73)}  # seconds: set-up, inference (for 21 labels the total was quoted)
GOLDENS = Path(__file__).parents[1] / "tests" / "goldens" / "dense_crf.npz"


def photograph(path: str | None, width: int = 500, height: int = 375) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image [H, W, 3] and a label map [H, W] of three labels."""
    goldens = np.load(GOLDENS)
    image = Image.open(path).convert("RGB") if path else Image.fromarray(goldens["cat_image"])
    labels = Image.fromarray(goldens["cat_labels"].clip(0, 2))
    size = (width, height)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)), np.asarray(labels.resize(size, 0))


def best(context: Callable[[], object], repeats: int = 7) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        context()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def with_scipy(image: np.ndarray, unary: np.ndarray, steps: int = 10) -> tuple[float, float, np.ndarray]:
    """The same mean field with every linear map a scipy.sparse matrix: seconds of both parts, marginals."""
    begin = time.perf_counter()
    num_labels, height, width = unary.shape
    place = np.stack([*np.indices((height, width))[::-1]], -1).reshape(-1, 2).astype(np.float32)
    color = image.reshape(-1, 3).astype(np.float32)
    filters = []
    for weight, features in ((3, place / 3), (10, np.concatenate([place / 50, color / 5], 1))):
        lattice = build(np.ascontiguousarray(features, np.float32), Threads(1))
        splat, blurs = matrices(lattice)
        gain = 1 / (1 + 2.0 ** -features.shape[1])
        ones = np.ones((len(features), 1), np.float32)
        norm = 1 / np.sqrt(apply(splat, blurs, ones, gain) + 1e-20)
        filters.append((weight, splat, blurs, gain, norm.astype(np.float32)))
    set_up = time.perf_counter() - begin
    logits = -unary.reshape(num_labels, -1).T
    q = softmax(logits)
    for _ in range(steps):
        q = softmax(logits + sum(w * n * apply(s, b, q * n, g) for w, s, b, g, n in filters))
    return set_up, time.perf_counter() - begin - set_up, q.T.reshape(unary.shape)


def matrices(lattice: Lattice) -> tuple[sparse.csr_matrix, list[sparse.csr_matrix]]:
    m, n = lattice.n_vertices, len(lattice.vertex)
    splat = sparse.csr_matrix((lattice.point_weight, lattice.point, lattice.start), (m, n))
    blurs = []
    for pair in lattice.neighbours:
        rows = np.repeat(np.arange(m), 2)
        found = pair.ravel() < m
        entries = (np.full(found.sum(), 0.5, np.float32), (rows[found], pair.ravel()[found]))
        blurs.append(sparse.identity(m, np.float32, "csr") + sparse.csr_matrix(entries, (m, m)))
    return splat, blurs


def apply(splat: sparse.csr_matrix, blurs: list[sparse.csr_matrix], values: np.ndarray, gain: float) -> np.ndarray:
    values = splat @ values
    for blur in blurs:
        values = blur @ values
    return (splat.T @ values) * np.float32(gain)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", nargs="?")
    parser.add_argument("--big", action="store_true")
    arguments = parser.parse_args()
    image, labels = photograph(arguments.photograph)
    compiling = needs_compiling()
    first = best(lambda: dense_crf(image[:50, :50], unary_from_labels(labels[:50, :50], 3)), 1)
    print(f"first call: {first:.1f} s, the kernels {'compiled' if compiling else 'loaded from the cache'}")
    print(f"{'':34}{'set-up':>8}{'inference':>11}{'total':>8}  of C++ (quoted)  of scipy (this run)")
    for num_labels in (3, 21):
        unary = unary_from_labels(labels, num_labels)
        set_up, inference = QUOTED[num_labels]
        cpp = set_up + inference
        print(f"{num_labels:2} labels, C++, quoted, 1 thread     {set_up:7.3f}{inference:11.3f}{cpp:8.3f}")
        a, b, plain = with_scipy(image, unary)
        print(f"{num_labels:2} labels, scipy.sparse, 1 thread    {a:7.3f}{b:11.3f}{a + b:8.3f}{cpp / (a + b):13.2f} x")
        for threads in (1, 2):
            total = best(lambda u=unary, t=threads: dense_crf(image, u, threads=t))  # type: ignore[misc]
            set_up = best(lambda u=unary, t=threads: dense_crf(image, u, threads=t, steps=0))  # type: ignore[misc]
            times = f"{set_up:7.3f}{total - set_up:11.3f}{total:8.3f}"
            ratios = f"{cpp / total:13.2f} x{(a + b) / total:17.2f} x"
            print(f"{num_labels:2} labels, tagmask, {threads} thread(s)      {times}{ratios}")
        agree = (dense_crf(image, unary).argmax(0) == plain.argmax(0)).mean()
        print(f"{'':10}label maps of both equal on {agree:.2%}")
    print(f"peak memory so far: {peak():.2f} GB")
    if arguments.big:
        image, labels = photograph(arguments.photograph, 4000, 3000)
        seconds = best(lambda: dense_crf(image, unary_from_labels(labels, 3), threads=2), 1)
        print(f"4,000×3,000 pixels, 3 labels, 2 threads: {seconds:.1f} s, peak memory {peak():.2f} GB")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
