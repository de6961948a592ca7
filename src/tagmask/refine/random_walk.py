"""The random walk that spreads response maps up to the objects' boundaries.

Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019
(IRN), sections 4.3 and 5.2. The reference squares the dense [N, N] transition matrix T eight times; here the sparse T
is applied to the maps 256 times, which is the same and hundreds of times faster.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from tagmask.refine.threads import Threads, thread_count

MAX_CELLS = 1 << 20
"""Larger grids are coarsened: at radius 5 this many cells take 300 MB, and an image of 4,000×3,000 pixels has 750,000
at stride 4. At other radii it is the number that takes as much."""

Floats = NDArray[np.float32]


def propagate(
    maps: Floats, boundary: Floats, *, radius: int = 5, beta: float = 10, steps: int = 256, threads: int | None = None
) -> NDArray[np.float32]:
    """Multiply maps · (1 − boundary) by the transition matrix T `steps` times.

    T is affinity^beta with its columns normalised. The affinity of two cells nearer than `radius` is 1 − the maximum
    of `boundary` along the straight path between them (equation 8), of a cell with itself 1, of all others 0.

    A grid of more than `MAX_CELLS` cells is coarsened f times in both directions (maps by the mean, boundaries by the
    maximum), walked steps / f² steps (at least one), which spread as far, and enlarged again bilinearly.

    Args:
        maps: [K, h, w] float.
        boundary: [h, w] float, probabilities 0 .. 1.
        radius: in cells; pairs at a distance below it are connected.
        beta: the larger, the fewer ways across weak boundaries.
        steps: the reference's 2^8.
        threads: how many to use, at most one a map; None: the environment's NUMBA_NUM_THREADS, or one a core.

    Returns:
        [K, h, w] float32.

    Raises:
        ValueError: shapes that do not fit, a boundary outside 0 .. 1, or a parameter out of range.
    """
    _check(maps, boundary, radius, beta, steps)
    height, width = boundary.shape
    offsets = half_disc(radius)
    factor = int(np.ceil(np.sqrt(height * width * len(offsets) / len(half_disc(5)) / MAX_CELLS)))
    if factor > 1:
        steps = max(min(steps, 1), round(steps / factor**2))
        coarse = _coarsen(maps, factor).mean(1), _coarsen(boundary[None], factor).max(1)[0]
        walked = propagate(*coarse, radius=radius, beta=beta, steps=steps, threads=threads)
        return _enlarge(walked, factor, height, width)
    from tagmask.refine.random_walk_kernels import walk  # here, because importing numba takes a while

    # rows one after the other with a gap of zeros between, so that a neighbour is everywhere the same way off
    stride = width + radius - 1
    values = np.zeros((len(maps), height + 2 * radius, stride), np.float32)
    values[:, radius : radius + height, :width] = maps * (1 - boundary)
    affinity, share = _affinities(boundary.astype(np.float32), offsets, radius, beta)
    flat = values.reshape(len(maps), len(share))
    walked = np.zeros_like(flat)
    shifts = offsets @ [stride, 1]

    def walk_maps(begin: int, end: int) -> None:
        part = slice(begin, end)
        walked[part] = walk(affinity, share, shifts, flat[part], np.zeros_like(flat[part]), radius * stride, steps)

    with Threads(thread_count(threads)) as pool:
        pool.over(pool.even(len(maps)), walk_maps)
    return np.ascontiguousarray(walked.reshape(values.shape)[:, radius : radius + height, :width])


def half_disc(radius: int) -> NDArray[np.int64]:
    """One offset (dy, dx) of each opposite pair at a distance below `radius`."""
    span = range(1 - radius, radius)
    return np.array(
        [(y, x) for y in range(radius) for x in span if (y > 0 or x > 0) and x * x + y * y < radius * radius], np.int64
    ).reshape(-1, 2)


def path_cells(dy: int, dx: int) -> list[tuple[int, int]]:
    """The cells between (0, 0) and (dy, dx), both included, less than 1 off the straight line, as in IRN's code."""
    rows, columns = range(min(dy, 0), max(dy, 0) + 1), range(min(dx, 0), max(dx, 0) + 1)
    return [(y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]


def _affinities(
    boundary: Floats, offsets: NDArray[np.int64], radius: int, beta: float
) -> tuple[Floats, NDArray[np.float32]]:
    """Affinity^beta of each cell and the one at each offset, [offsets, cells], and 1 / their sum, [cells].

    Cells are those of h + 2 radius rows of w + radius - 1 columns; beyond the grid they have affinity 0.
    """
    height, width = boundary.shape
    affinity = np.zeros((len(offsets), height + 2 * radius, width + radius - 1), np.float32)
    total = np.ones(affinity.shape[1:], np.float32)  # the affinity of a cell with itself
    for n, (dy, dx) in enumerate(offsets.tolist()):
        # cells (y, x) for which (y + dy, x + dx) is on the grid; dy >= 0
        rows, left, right = height - dy, max(-dx, 0), width - max(dx, 0)
        if rows <= 0 or right <= left:
            continue
        highest = np.zeros((rows, right - left), np.float32)
        for y, x in path_cells(dy, dx):
            np.maximum(highest, boundary[y : y + rows, left + x : right + x], out=highest)
        pairs = (1 - highest) ** np.float32(beta)
        affinity[n, radius : radius + rows, left:right] = pairs
        total[radius : radius + rows, left:right] += pairs
        total[radius + dy : radius + height, left + dx : right + dx] += pairs
    return affinity.reshape(len(offsets), total.size), np.reciprocal(total.ravel())


def _coarsen(grids: Floats, factor: int) -> NDArray[np.float32]:
    """[K, h, w] → [K, factor², ceil(h / factor), ceil(w / factor)]: each coarse cell's cells, edges repeated."""
    k, height, width = grids.shape
    rows, columns = -(-height // factor), -(-width // factor)
    grids = np.pad(grids, ((0, 0), (0, rows * factor - height), (0, columns * factor - width)), "edge")
    cells = grids.reshape(k, rows, factor, columns, factor).transpose(0, 2, 4, 1, 3)
    return cells.reshape(k, factor * factor, rows, columns)


def _enlarge(grids: Floats, factor: int, height: int, width: int) -> NDArray[np.float32]:
    """Bilinear, with cell centres in their places (align_corners=False)."""
    large = [zoom(grid, factor, order=1, mode="nearest", grid_mode=True) for grid in grids]
    return np.stack(large)[:, :height, :width].astype(np.float32)


def _check(maps: Floats, boundary: Floats, radius: int, beta: float, steps: int) -> None:
    if boundary.ndim != 2 or not boundary.size:
        raise ValueError(f"boundary must be [h, w], not {list(boundary.shape)}")
    if maps.ndim != 3 or maps.shape[1:] != boundary.shape:
        raise ValueError(f"maps must be [K, h, w] like boundary {list(boundary.shape)}, not {list(maps.shape)}")
    if not (boundary.min() >= 0 and boundary.max() <= 1):
        raise ValueError(f"boundary {list(boundary.shape)} must lie in 0 .. 1: give probabilities, not logits")
    if not np.isfinite(maps).all():
        raise ValueError(f"maps {list(maps.shape)} hold NaN or infinity")
    if radius < 1 or beta <= 0 or steps < 0:
        raise ValueError(f"radius must be 1 or more, beta above 0, steps 0 or more, not {radius}, {beta}, {steps}")
