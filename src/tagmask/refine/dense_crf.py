"""The fully connected (dense) CRF: it moves the borders of label maps to the edges of the image.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011:
mean-field inference in which every pixel exchanges messages with every other pixel through Gaussian kernels, which
are filtered on the permutohedral lattice.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tagmask.label_map import IGNORE_INDEX
from tagmask.refine.label_selection import MIN_PROBABILITY, row_length
from tagmask.refine.settings import CrfSettings
from tagmask.refine.threads import Threads, thread_count

if TYPE_CHECKING:
    from tagmask.refine.permutohedral import Floats, Lattice

PADDING_LOGIT = -1e30  # the logit of labels that only fill a SIMD register
MAX_ROW = 40  # values of a pixel that several sets of energies fill at most; longer rows gain little
MAX_VALUES = 1 << 24  # of all pixels; the mean field has two such arrays of float32, 64 MB each


def unary_from_labels(labels: NDArray[np.uint8], num_labels: int, gt_prob: float = 0.7) -> NDArray[np.float32]:
    """Return the unary energies of a label map that is right with probability `gt_prob`.

    Args:
        labels: [H, W] uint8, 0 .. L - 1, or 255 for ignored pixels, where all labels are equally likely.
        num_labels: L, 1 .. 255.
        gt_prob: probability of the given label, in (0, 1); the other labels share the rest equally.

    Returns:
        [L, H, W] float32, -log of the probabilities.

    Raises:
        ValueError: `labels` is not [H, W] uint8, holds a label that is neither below L nor 255, or another argument is
            out of range.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8 or not labels.size:
        raise ValueError(f"labels must be [H, W] uint8, not {list(labels.shape)} {labels.dtype}")
    if not 1 <= num_labels <= IGNORE_INDEX:
        raise ValueError(f"num_labels must be 1 to {IGNORE_INDEX}, not {num_labels}")
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob must lie between 0 and 1, not {gt_prob}")
    known = labels != IGNORE_INDEX
    largest = int(labels.max(where=known, initial=0))
    if largest >= num_labels:
        raise ValueError(f"labels {list(labels.shape)} hold {largest}, but num_labels is {num_labels}")
    other_prob = (1 - gt_prob) / (num_labels - 1) if num_labels > 1 else 1.0
    unary = np.full((num_labels, *labels.shape), -np.log(other_prob), np.float32)
    for label in range(num_labels):
        unary[label][labels == label] = -np.log(gt_prob)
    unary[:, ~known] = np.log(num_labels)
    return unary


def unary_from_probabilities(probabilities: NDArray[Any]) -> NDArray[np.float32]:
    """Return the unary energies -log(p) of probabilities.

    Args:
        probabilities: [L, H, W] float; they are clipped to `MIN_PROBABILITY` (1e-5) .. 1.

    Returns:
        [L, H, W] float32.

    Raises:
        ValueError: `probabilities` is not [L, H, W], or is not finite.
    """
    if probabilities.ndim != 3 or not probabilities.size:
        raise ValueError(f"probabilities must be [L, H, W], not {list(probabilities.shape)}")
    if not np.isfinite(probabilities).all():
        raise ValueError(f"probabilities {list(probabilities.shape)} hold NaN or infinity")
    unary: NDArray[np.float32] = -np.log(np.clip(probabilities, MIN_PROBABILITY, 1, dtype=np.float32))
    return unary


def dense_crf(
    image: NDArray[np.uint8],
    unary: NDArray[np.float32],
    *,
    steps: int = 10,
    gaussian_sxy: float = 3,
    gaussian_weight: float = 3,
    bilateral_sxy: float = 50,
    bilateral_srgb: float = 5,
    bilateral_weight: float = 10,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Compute the mean-field marginals of a dense CRF with Potts compatibility and symmetrically normalized kernels.

    Several sets of unary energies of one image can be given at once. They share the lattices of the kernels and are
    filtered together, so 11 sets of 2 labels take three to four times the time of one set.

    Args:
        image: [H, W, 3] uint8, RGB.
        unary: [L, H, W] float, -log of the probabilities; or [S, L, H, W], S sets.
        steps: number of mean-field updates, 0 or more (Algorithm 1).
        gaussian_sxy: standard deviation in pixels of the smoothness kernel (equation 3, second term), above 0.
        gaussian_weight: weight of the smoothness kernel; 0 leaves the kernel out.
        bilateral_sxy: standard deviation in pixels of the appearance kernel (equation 3, first term), above 0.
        bilateral_srgb: standard deviation of the appearance kernel in color levels, 0 .. 255, above 0.
        bilateral_weight: weight of the appearance kernel; 0 leaves the kernel out.
        threads: number of threads; None: the environment variable NUMBA_NUM_THREADS, or the number of cores. The
            number of threads does not change a bit of the result.

    Returns:
        [L, H, W] or [S, L, H, W] float32, probabilities that sum to 1 over the labels.

    Raises:
        ValueError: a shape or type does not fit, or a parameter is out of range.
    """
    check_arguments(image, unary, steps, gaussian_sxy, bilateral_sxy, bilateral_srgb)
    sets = unary if unary.ndim == 4 else unary[None]
    max_row = min(MAX_ROW, MAX_VALUES // (image.shape[0] * image.shape[1]))
    num_parts = -(-len(sets) // max(1, max_row // sets.shape[1]))
    with Threads(thread_count(threads)) as pool:
        lattices = build_lattices(
            image, gaussian_sxy, gaussian_weight, bilateral_sxy, bilateral_srgb, bilateral_weight, pool
        )
        marginals = [_marginals_of_sets(part, lattices, steps, pool) for part in np.array_split(sets, num_parts)]
    return np.concatenate(marginals).reshape(unary.shape)


def _marginals_of_sets(
    unary: NDArray[np.float32], lattices: "list[Lattice]", steps: int, threads: Threads
) -> NDArray[np.float32]:
    """Return the marginals [S, L, H, W] of sets of energies [S, L, H, W], whose values share the row of a pixel."""
    # here, because importing numba takes a while
    from tagmask.refine.permutohedral_kernels import softmax_inplace

    num_values, num_pixels = len(unary) * unary.shape[1], unary.shape[2] * unary.shape[3]
    logits = np.full((num_pixels, row_length(num_values)), PADDING_LOGIT, np.float32)
    np.negative(unary.reshape(num_values, num_pixels).T, out=logits[:, :num_values])
    sets = unary.shape[:2] if len(unary) > 1 else (1, logits.shape[1])  # whole rows are faster
    marginals = mean_field(logits, lattices, steps, threads, lambda part, rows: softmax_inplace(part, *sets))
    return np.ascontiguousarray(marginals[:, :num_values].T).reshape(unary.shape)


def apply_crf(
    image: NDArray[np.uint8], unary: NDArray[np.float32], settings: CrfSettings, threads: int | None = None
) -> NDArray[np.float32]:
    """Compute the marginals of the dense CRF with the settings of a recipe; see `dense_crf`."""
    return dense_crf(image, unary, steps=settings.steps, **settings.kernel_arguments(), threads=threads)


def needs_compiling() -> bool:
    """Return whether the next call of `dense_crf` will first compile its kernels, which takes about 10 seconds."""
    from tagmask.refine import permutohedral_kernels

    return permutohedral_kernels.needs_compiling()


def compile_crf_kernels(info: Callable[[str], None]) -> None:
    """Compile the kernels of `dense_crf` if this machine has no compiled ones yet.

    Call it before several processes use the CRF, which would otherwise all compile the kernels at the same time. The
    compiled kernels are kept on disk.

    Args:
        info: prints a message to the user; called only if there is something to compile.
    """
    if needs_compiling():
        info("compiling the kernels of the CRF (only once on this machine; takes about 10 seconds)")
        from tagmask.refine.permutohedral_kernels import softmax_of_selected_inplace

        row = np.zeros((1, 8), np.float32)
        softmax_of_selected_inplace(row, row, row[0, :1], 2, row[0, :1])
        dense_crf(np.zeros((8, 8, 3), np.uint8), unary_from_labels(np.zeros((8, 8), np.uint8), 2))


def build_lattices(
    image: NDArray[np.uint8],
    gaussian_sxy: float,
    gaussian_weight: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_weight: float,
    threads: Threads,
) -> "list[Lattice]":
    """Return the lattices of the kernels of `dense_crf`."""
    from tagmask.refine.permutohedral import build_lattice

    height, width = image.shape[:2]
    # The coordinates come in the order of the reference implementation, because the lattice is not quite isotropic.
    y, x = np.indices((height, width), np.float32).reshape(2, height * width)
    lattices = []
    if gaussian_weight:
        features = np.stack([x / np.float32(gaussian_sxy), y / np.float32(gaussian_sxy)], 1)
        lattices.append(build_lattice(features, gaussian_weight, threads))
        del features
    if bilateral_weight:
        rgb = image.reshape(height * width, 3).T.astype(np.float32)
        position = [x / np.float32(bilateral_sxy), y / np.float32(bilateral_sxy)]
        features = np.stack([*position, *(rgb / np.float32(bilateral_srgb))], 1)
        del x, y, rgb, position
        lattices.append(build_lattice(features, bilateral_weight, threads))
    return lattices


def mean_field(
    logits: "Floats",
    lattices: "list[Lattice]",
    steps: int,
    threads: Threads,
    normalize_inplace: "Callable[[Floats, slice], None]",
) -> "Floats":
    """Return the marginals [N, L] after `steps` updates, from the logits [N, L], which are negated unary energies.

    Args:
        logits: [N, L], with L as `row_length` gives it.
        lattices: the kernels.
        steps: number of updates.
        threads: the threads to use.
        normalize_inplace: replaces rows of logits plus messages by the marginals, their softmax; it gets the rows and
            where they are.
    """
    from tagmask.refine.permutohedral import slice_onto, splat_and_blur

    marginals = logits.copy()
    rows = threads.even_bounds(len(logits))
    buffers = [lattice.buffers(logits.shape[1]) for lattice in lattices]
    threads.run(rows, lambda begin, end: normalize_inplace(marginals[begin:end], slice(begin, end)))
    for _ in range(steps if lattices else 0):
        values = [
            splat_and_blur(lattice, marginals, pair, threads) for lattice, pair in zip(lattices, buffers, strict=True)
        ]

        def update(begin: int, end: int, values: "list[Floats]" = values) -> None:
            part = slice(begin, end)
            base = logits[part]
            for lattice, value in zip(lattices, values, strict=True):
                slice_onto(lattice, part, value, base, marginals[part])
                base = marginals[part]
            normalize_inplace(marginals[part], part)

        threads.run(rows, update)
    return marginals


def check_arguments(image: NDArray[np.uint8], unary: NDArray[np.float32], steps: int, *deviations: float) -> None:
    """Raise ValueError if the arguments of `dense_crf` do not fit."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be [H, W, 3] uint8, not {list(image.shape)} {image.dtype}")
    if unary.ndim not in (3, 4) or not unary.size or unary.shape[-2:] != image.shape[:2]:
        raise ValueError(f"unary must be [L, H, W] like image {list(image.shape)}, not {list(unary.shape)}")
    if not np.isfinite(unary).all():
        raise ValueError(f"unary {list(unary.shape)} holds NaN or infinity; clip the probabilities first")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, not {steps}")
    if min(deviations) <= 0:
        raise ValueError(f"standard deviations must be above 0, not {min(deviations)}")
