"""Measure the time and memory of the dense CRF against pydensecrf, in the same run.

    pip install "tagmask[bench]"        # pydensecrf2; it is compiled if there is no wheel for your machine
    python benchmarks/dense_crf.py [PHOTOGRAPH] [--labels 3,21,81] [--repeats N] [--big]

A photograph of 640×480 pixels (default: the test photograph, enlarged), 10 steps, DeepLab's settings of the CRF. The
probabilities are those of a label map for 3 labels. For 21 and 81 labels they are as of a segmentation network: some
labels matter, some come near them, and most are negligible. All computations are repeated one after the other, and the
shortest time of each counts, so that other processes of the machine disturb all alike. On a busy machine, compare the
CPU times of one thread.

"all labels" is `dense_crf`. "selected" is what tagmask does with the probabilities of a network: `select_labels`, which
runs in the main process, and `most_probable_crf_labels`, which runs in the workers. After these, 11 label maps of one
image of 320×240 pixels are refined together, as for one threshold per image, and one by one. `--big` adds an image of
4,000×3,000 pixels with 3 labels.
"""

import argparse
import multiprocessing
import pickle
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tagmask.refine.crf_labels import most_probable_crf_labels
from tagmask.refine.dense_crf import apply_crf, needs_compiling, unary_from_labels, unary_from_probabilities
from tagmask.refine.label_selection import select_labels
from tagmask.refine.settings import NETWORK_CRF, CrfSettings

GOLDENS = Path(__file__).parents[1] / "tests" / "goldens" / "dense_crf.npz"


def photograph(path: str | None, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an RGB image [H, W, 3] uint8 and a label map [H, W] uint8 of three labels."""
    goldens = np.load(GOLDENS)
    image = Image.open(path).convert("RGB") if path else Image.fromarray(goldens["cat_image"])
    labels = Image.fromarray(goldens["cat_labels"].clip(0, 2))
    size = (width, height)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)), np.asarray(labels.resize(size, 0))


def network_probabilities(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Return probabilities [L, H, W] as of a network: smooth logits, high ones for the labels of a label map.

    The logits of each other label are noise around a level of its own.
    """
    rng = np.random.default_rng(0)
    height, width = labels.shape
    logits = rng.normal(size=(num_labels, height // 16, width // 16)) - 3 * rng.gamma(4, 1, (num_labels, 1, 1))
    for label in range(3):
        inside = Image.fromarray((labels == label).astype(np.float32)).resize((width // 16, height // 16))
        logits[label] = 8 * np.asarray(inside) + rng.normal(size=inside.size[::-1])
    planes = [Image.fromarray(plane.astype(np.float32)).resize((width, height), 2) for plane in logits]
    exponentials = np.exp(np.stack([np.asarray(plane) for plane in planes]))
    probabilities: np.ndarray = exponentials / exponentials.sum(0)
    return probabilities.astype(np.float32)


def with_pydensecrf(image: np.ndarray, unary: np.ndarray) -> np.ndarray:
    """Return the marginals [L, H, W] of pydensecrf, which uses one thread."""
    from pydensecrf.densecrf import DenseCRF2D

    num_labels, height, width = unary.shape
    crf = DenseCRF2D(width, height, num_labels)
    crf.setUnaryEnergy(unary.reshape(num_labels, -1))
    s = NETWORK_CRF
    crf.addPairwiseGaussian(sxy=s.gaussian_sxy, compat=s.gaussian_weight)
    crf.addPairwiseBilateral(sxy=s.bilateral_sxy, srgb=s.bilateral_srgb, rgbim=image, compat=s.bilateral_weight)
    return np.array(crf.inference(s.steps)).reshape(unary.shape)


def shortest_times(
    functions: Mapping[str, Callable[[], object]], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the shortest run time and CPU time of each function in seconds; the functions take turns."""
    times, cpu_times = dict.fromkeys(functions, float("inf")), dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            begin, cpu_begin = time.perf_counter(), time.process_time()
            function()
            times[name] = min(times[name], time.perf_counter() - begin)
            cpu_times[name] = min(cpu_times[name], time.process_time() - cpu_begin)
    return times, cpu_times


def added_memory(function: Callable[[], object]) -> float:
    """Return by how many MB a call raises the peak memory of a fresh process."""

    def measure() -> None:
        torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork: the child would wait for them forever
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=measure)
    process.start()
    process.join()
    return float(queue.get())


def compare(image: np.ndarray, labels: np.ndarray, num_labels: int, repeats: int, has_peer: bool) -> None:
    """Print times, memory and agreement for one number of labels."""
    image = image.copy()  # pydensecrf takes no read-only array
    unary, probabilities = unary_from_labels(labels, num_labels), None
    if num_labels > 3:
        probabilities = network_probabilities(labels, num_labels)
        unary = unary_from_probabilities(probabilities)
    functions: dict[str, Callable[[], np.ndarray]] = {}
    if has_peer:
        functions["pydensecrf, 1 thread"] = lambda: with_pydensecrf(image, unary).argmax(0)
    for threads in (1, 2):
        functions[f"all labels, {threads} thread(s)"] = lambda t=threads: apply_crf(  # type: ignore[misc]
            image, unary, NETWORK_CRF, t
        ).argmax(0)
        if probabilities is not None:
            functions[f"selected, {threads} thread(s)"] = lambda t=threads: most_probable_crf_labels(  # type: ignore[misc]
                image, select_labels(probabilities, NETWORK_CRF), NETWORK_CRF, t
            )
    reference = next(iter(functions))
    maps = {name: function() for name, function in functions.items()}
    times, cpu_times = shortest_times(functions, repeats)
    print(f"{num_labels} labels; how many times as fast as {reference}, by run time and by CPU time")
    for name, seconds in times.items():
        same = (maps[name] == maps[reference]).mean()
        cpu = cpu_times[name]
        speedup = f"{times[reference] / seconds:7.1f} ×{cpu_times[reference] / cpu:7.1f} ×"
        memory = added_memory(functions[name])
        print(
            f"  {name:24}{seconds:8.3f} s{cpu:8.3f} CPU s{speedup}; {same:.4%} of the labels are its; {memory:5.0f} MB"
        )
    if probabilities is not None:
        selected = select_labels(probabilities, NETWORK_CRF)
        seconds = shortest_times({"": lambda: select_labels(probabilities, NETWORK_CRF)}, repeats)[1][""]
        sent, before = len(pickle.dumps(selected)) / 1e6, probabilities.nbytes / 1e6
        print(
            f"  {len(selected.labels)} labels selected and {len(selected.reserve)} in reserve, in {seconds:.3f} CPU s; "
            f"{sent:.1f} MB instead of {before:.1f} MB go to a worker"
        )


def compare_sets(image: np.ndarray, num_sets: int, repeats: int) -> None:
    """Print the time of several sets of energies of one image, together and one by one, and of one set."""
    rng = np.random.default_rng(0)
    maps = [np.kron(rng.random((15, 20)) < 0.3 + 0.02 * s, np.ones((16, 16), bool)) for s in range(num_sets)]
    sets = np.stack([unary_from_labels(one.astype(np.uint8), 2) for one in maps])
    crf = CrfSettings()
    functions: dict[str, Callable[[], np.ndarray]] = {
        "one set": lambda: apply_crf(image, sets[0], crf, 1).argmax(0),
        f"{num_sets} sets one by one": lambda: np.stack([apply_crf(image, s, crf, 1).argmax(0) for s in sets]),
        f"{num_sets} sets together": lambda: apply_crf(image, sets, crf, 1).argmax(1),
    }
    times, cpu_times = shortest_times(functions, repeats)
    print(f"{image.shape[1]}×{image.shape[0]} pixels, 2 labels, 1 thread")
    for name, cpu in cpu_times.items():
        print(f"  {name:24}{times[name]:8.3f} s{cpu:8.3f} CPU s{cpu / cpu_times['one set']:7.1f} × one set")
    together, alone = (functions[name]() for name in list(functions)[:0:-1])
    print(f"  {(together == alone).mean():.4%} of the labels are equal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", nargs="?")
    parser.add_argument("--labels", default="3,21,81")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--big", action="store_true")
    arguments = parser.parse_args()
    try:
        import pydensecrf.densecrf  # noqa: F401

        has_peer = True
    except ImportError:
        has_peer = False
        print('pydensecrf is not installed, so there is no comparison with it: pip install "tagmask[bench]"')
    image, labels = photograph(arguments.photograph, 640, 480)
    compiling = needs_compiling()
    begin = time.perf_counter()
    apply_crf(image[:50, :50], unary_from_labels(labels[:50, :50], 3), NETWORK_CRF)
    print(f"first call: {time.perf_counter() - begin:.1f} s, kernels {'compiled' if compiling else 'from the cache'}")
    for num_labels in map(int, arguments.labels.split(",")):
        compare(image, labels, num_labels, arguments.repeats, has_peer)
    compare_sets(np.ascontiguousarray(image[::2, ::2]), 11, arguments.repeats)
    if arguments.big:
        image, labels = photograph(arguments.photograph, 4000, 3000)
        begin = time.perf_counter()
        apply_crf(image, unary_from_labels(labels, 3), NETWORK_CRF, 2)
        seconds, peak = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"4,000×3,000 pixels, 3 labels, 2 threads: {seconds:.1f} s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
