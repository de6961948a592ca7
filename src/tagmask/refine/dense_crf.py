"""The fully connected CRF: label maps that follow the image's edges.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011:
mean field in which every pixel hears from every other one through Gaussian kernels, filtered on the permutohedral
lattice.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tagmask.refine.threads import Threads, thread_count

if TYPE_CHECKING:
    from tagmask.refine.permutohedral import Floats, Lattice

IGNORE_INDEX = 255
_NEVER = -1e30  # the logit of labels that only fill a SIMD register


def unary_from_labels(labels: NDArray[np.uint8], num_labels: int, gt_prob: float = 0.7) -> NDArray[np.float32]:
    """Unary energies of a label map that is right with probability `gt_prob`.

    Args:
        labels: [H, W] uint8, 0 .. n_labels - 1; 255 is unsure: every label alike.
        n_labels: L, 1 .. 255.
        gt_prob: in (0, 1); the other labels share the rest.

    Returns:
        [L, H, W] float32, -log of the probabilities.

    Raises:
        ValueError: `labels` is not [H, W] uint8, or holds a label that is neither below L nor 255.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8 or not labels.size:
        raise ValueError(f"labels must be [H, W] uint8, not {list(labels.shape)} {labels.dtype}")
    if not 1 <= num_labels <= IGNORE_INDEX:
        raise ValueError(f"n_labels must be 1 to {IGNORE_INDEX}, not {num_labels}")
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob must lie between 0 and 1, not {gt_prob}")
    sure = labels != IGNORE_INDEX
    largest = int(labels.max(where=sure, initial=0))
    if largest >= num_labels:
        raise ValueError(f"labels {list(labels.shape)} hold {largest}, but n_labels is {num_labels}")
    other = (1 - gt_prob) / (num_labels - 1) if num_labels > 1 else 1.0
    unary = np.full((num_labels, *labels.shape), -np.log(other), np.float32)
    for label in range(num_labels):
        unary[label][labels == label] = -np.log(gt_prob)
    unary[:, ~sure] = np.log(num_labels)
    return unary


def unary_from_probabilities(probabilities: NDArray[Any]) -> NDArray[np.float32]:
    """Unary energies -log(p) of `probabilities` [L, H, W], clipped to 1e-5 .. 1, as float32 [L, H, W].

    Raises:
        ValueError: `probabilities` is not [L, H, W], or is not finite.
    """
    if probabilities.ndim != 3 or not probabilities.size:
        raise ValueError(f"probabilities must be [L, H, W], not {list(probabilities.shape)}")
    if not np.isfinite(probabilities).all():
        raise ValueError(f"probabilities {list(probabilities.shape)} hold NaN or infinity")
    unary: NDArray[np.float32] = -np.log(np.clip(probabilities, 1e-5, 1, dtype=np.float32))
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
    """Mean-field marginals of a dense CRF with Potts compatibility and symmetrically normalised kernels.

    Args:
        image: [H, W, 3] uint8, RGB.
        unary: [L, H, W], -log of the probabilities.
        steps: mean-field updates (Algorithm 1).
        gaussian_sxy: standard deviation in pixels of the smoothness kernel (equation 3, second term).
        gaussian_weight: its weight; 0 leaves the kernel out.
        bilateral_sxy: standard deviation in pixels of the appearance kernel (equation 3, first term).
        bilateral_srgb: its standard deviation in grey levels, 0 .. 255.
        bilateral_weight: its weight; 0 leaves the kernel out.
        threads: how many to use; None: the environment's NUMBA_NUM_THREADS, or as many as there are cores.
            The result is the same to the last bit.

    Returns:
        [L, H, W] float32 that sum to 1 over the labels.

    Raises:
        ValueError: shapes or types that do not fit, a standard deviation or step count that is not positive.
    """
    _check(image, unary, steps, gaussian_sxy, bilateral_sxy, bilateral_srgb)
    # here, because importing numba takes a while
    from tagmask.refine import permutohedral as lattice
    from tagmask.refine import permutohedral_kernels as compiled

    num_labels, height, width = unary.shape
    n = height * width
    y, x = np.indices((height, width), np.float32).reshape(2, n)
    rgb = image.reshape(n, 3).T.astype(np.float32)
    kernels = []
    with Threads(thread_count(threads)) as pool:
        # the reference order of the features: the lattice is not quite isotropic
        if gaussian_weight:
            features = np.stack([x / np.float32(gaussian_sxy), y / np.float32(gaussian_sxy)], 1)
            kernels.append(lattice.build(features, pool))
            lattice.normalise(kernels[-1], gaussian_weight, pool)
            del features
        if bilateral_weight:
            place = [x / np.float32(bilateral_sxy), y / np.float32(bilateral_sxy)]
            features = np.stack([*place, *(rgb / np.float32(bilateral_srgb))], 1)
            kernels.append(lattice.build(features, pool))
            lattice.normalise(kernels[-1], bilateral_weight, pool)
            del place, features
        del x, y, rgb
        logits = np.full((n, -(-num_labels // compiled.LANES) * compiled.LANES), _NEVER, np.float32)
        np.negative(unary.reshape(num_labels, n).T, out=logits[:, :num_labels])
        marginals = _mean_field(logits, kernels, steps, pool)
    return np.ascontiguousarray(marginals[:, :num_labels].T).reshape(unary.shape)


def needs_compiling() -> bool:
    """Whether `dense_crf` will first compile its kernels, which takes some 5 seconds, once per machine."""
    from tagmask.refine import permutohedral_kernels as compiled

    return compiled.needs_compiling()


def _mean_field(logits: "Floats", kernels: "list[Lattice]", steps: int, threads: Threads) -> "Floats":
    """Marginals [N, L]: softmax of the negated unary plus the filtered marginals, `steps` times over."""
    from tagmask.refine import permutohedral_kernels as compiled
    from tagmask.refine.permutohedral import spread

    marginals = logits.copy()
    rows = threads.even(len(logits))
    buffers = [kernel.buffers(logits.shape[1]) for kernel in kernels]
    threads.over(rows, lambda begin, end: compiled.softmax(marginals[begin:end]))
    for _ in range(steps if kernels else 0):
        values = [spread(kernel, marginals, pair, threads) for kernel, pair in zip(kernels, buffers, strict=True)]

        def update(begin: int, end: int, values: "list[Floats]" = values) -> None:
            part = slice(begin, end)
            base = logits[part]
            for kernel, value in zip(kernels, values, strict=True):
                compiled.slice_onto(kernel.vertex[part], kernel.weight[part], value, base, marginals[part])
                base = marginals[part]
            compiled.softmax(marginals[begin:end])

        threads.over(rows, update)
    return marginals


def _check(image: NDArray[np.uint8], unary: NDArray[np.float32], steps: int, *deviations: float) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be [H, W, 3] uint8, not {list(image.shape)} {image.dtype}")
    if unary.ndim != 3 or not unary.size or unary.shape[1:] != image.shape[:2]:
        raise ValueError(f"unary must be [L, H, W] like image {list(image.shape)}, not {list(unary.shape)}")
    if not np.isfinite(unary).all():
        raise ValueError(f"unary {list(unary.shape)} holds NaN or infinity; clip the probabilities first")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, not {steps}")
    if min(deviations) <= 0:
        raise ValueError(f"standard deviations must be above 0, not {min(deviations)}")
