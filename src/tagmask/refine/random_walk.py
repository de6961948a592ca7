"""The random walk that spreads response maps up to the boundaries of objects.

Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019
(IRN), sections 4.3 and 5.2. The reference code squares the dense [N, N] transition matrix T eight times. Here the
sparse T is multiplied with the maps 256 times, which gives the same result hundreds of times faster.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from tagmask.maps import ResponseMaps, strongest_activation
from tagmask.refine.settings import RandomWalkSettings
from tagmask.refine.threads import Threads, thread_count

MAX_CELLS = 1 << 20
"""Larger grids are coarsened before the walk. At radius 5, this many cells take 300 MB; at other radii, the limit is
the number of cells that takes as much. An image of 4,000×3,000 pixels has 750,000 cells at stride 4."""

Floats = NDArray[np.float32]


def walk_maps(
    maps: ResponseMaps, boundary: Floats, settings: RandomWalkSettings, threads: int | None = None
) -> ResponseMaps:
    """Return the maps after the random walk, divided by the highest activation of the image at its full size.

    Cells can be slightly more active than any pixel, because upsampling averages them; they are clipped to 1.

    Args:
        maps: response maps of the image.
        boundary: [h, w] float, probability in 0..1 that a cell lies on a boundary.
        settings: the walk.
        threads: number of threads, see `propagate`.

    Raises:
        ValueError: `boundary` does not fit the maps, or is not in 0..1.
    """
    walked = maps.maps.astype(np.float32) ** settings.map_power
    if len(walked):
        walked = propagate(
            walked, boundary, radius=settings.radius, beta=settings.beta, steps=settings.steps, threads=threads
        )
    highest = strongest_activation(walked, maps.size)[0].max()
    return ResponseMaps(maps.classes, np.minimum(walked / (highest or 1), 1), maps.size)


def propagate(
    maps: Floats, boundary: Floats, *, radius: int = 5, beta: float = 10, steps: int = 256, threads: int | None = None
) -> NDArray[np.float32]:
    """Multiply maps · (1 − boundary) by the transition matrix T `steps` times.

    T is affinity^beta with normalized columns. The affinity of two cells nearer than `radius` is 1 − the maximum of
    `boundary` along the straight path between them (equation 8); that of a cell with itself is 1, all others are 0.

    A grid of more than `MAX_CELLS` cells is coarsened by a factor f in both directions (maps by the mean, boundaries
    by the maximum). The walk then takes steps / f² steps (at least one), which spread the maps as far, and the result
    is enlarged bilinearly.

    Args:
        maps: [K, h, w] float.
        boundary: [h, w] float, probabilities in 0..1.
        radius: in cells, 1 or more; pairs of cells at a smaller distance are connected.
        beta: exponent, above 0; the larger, the better weak boundaries stop the walk.
        steps: number of multiplications, 0 or more; the reference code uses 2^8.
        threads: number of threads, of which at most K are used; None: the environment variable NUMBA_NUM_THREADS, or
            the number of cores.

    Returns:
        [K, h, w] float32.

    Raises:
        ValueError: a shape does not fit, `boundary` is not in 0..1, or a parameter is out of range.
    """
    _check(maps, boundary, radius, beta, steps)
    height, width = boundary.shape
    offsets = half_disc(radius)
    factor = int(np.ceil(np.sqrt(height * width * len(offsets) / len(half_disc(5)) / MAX_CELLS)))
    if factor > 1:
        steps = max(min(steps, 1), round(steps / factor**2))
        coarse_maps = _space_to_depth(maps, factor).mean(1)
        coarse_boundary = _space_to_depth(boundary[None], factor).max(1)[0]
        walked = propagate(coarse_maps, coarse_boundary, radius=radius, beta=beta, steps=steps, threads=threads)
        return enlarge(walked, factor, height, width)
    from tagmask.refine.random_walk_kernels import walk_inplace  # here, because importing numba takes a while

    # The rows lie one after the other with a gap of zeros between them, so that a neighbor is at the same distance
    # in memory from every cell.
    stride = width + radius - 1
    values = np.zeros((len(maps), height + 2 * radius, stride), np.float32)
    values[:, radius : radius + height, :width] = maps * (1 - boundary)
    affinity, inverse_sum = _affinities(boundary.astype(np.float32), offsets, radius, beta)
    flat = values.reshape(len(maps), len(inverse_sum))
    walked = np.zeros_like(flat)
    shifts = offsets @ [stride, 1]

    def walk_range(begin: int, end: int) -> None:
        part = slice(begin, end)
        scratch = np.zeros_like(flat[part])
        walked[part] = walk_inplace(affinity, inverse_sum, shifts, flat[part], scratch, radius * stride, steps)

    with Threads(thread_count(threads)) as pool:
        pool.run(pool.even_bounds(len(maps)), walk_range)
    return np.ascontiguousarray(walked.reshape(values.shape)[:, radius : radius + height, :width])


def half_disc(radius: int) -> NDArray[np.int64]:
    """Return one offset (dy, dx) of each pair of opposite offsets at a distance below `radius`: [N, 2] int64."""
    span = range(1 - radius, radius)
    return np.array(
        [(y, x) for y in range(radius) for x in span if (y > 0 or x > 0) and x * x + y * y < radius * radius], np.int64
    ).reshape(-1, 2)


def path_cells(dy: int, dx: int) -> list[tuple[int, int]]:
    """Return the cells (y, x) on the path from (0, 0) to (dy, dx), both included.

    As in IRN's code, these are the cells at a distance of less than 1 from the straight line.
    """
    rows, columns = range(min(dy, 0), max(dy, 0) + 1), range(min(dx, 0), max(dx, 0) + 1)
    return [(y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]


def _affinities(
    boundary: Floats, offsets: NDArray[np.int64], radius: int, beta: float
) -> tuple[Floats, NDArray[np.float32]]:
    """Affinity^beta of each cell and the cell at each offset, [offsets, cells], and 1 / the column sums, [cells].

    The cells are those of h + 2 · radius rows and w + radius - 1 columns; outside the grid the affinity is 0.
    """
    height, width = boundary.shape
    affinity = np.zeros((len(offsets), height + 2 * radius, width + radius - 1), np.float32)
    total = np.ones(affinity.shape[1:], np.float32)  # the affinity of a cell with itself
    for n, (dy, dx) in enumerate(offsets.tolist()):
        # the cells (y, x) for which (y + dy, x + dx) is on the grid; dy is never negative
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


def _space_to_depth(grids: Floats, factor: int) -> NDArray[np.float32]:
    """Group the cells [K, h, w] into coarse cells: [K, factor², ceil(h / factor), ceil(w / factor)], edges repeated."""
    k, height, width = grids.shape
    rows, columns = -(-height // factor), -(-width // factor)
    grids = np.pad(grids, ((0, 0), (0, rows * factor - height), (0, columns * factor - width)), "edge")
    cells = grids.reshape(k, rows, factor, columns, factor).transpose(0, 2, 4, 1, 3)
    return cells.reshape(k, factor * factor, rows, columns)


def enlarge(grids: Floats, factor: int, height: int, width: int) -> NDArray[np.float32]:
    """Enlarge grids [K, h, w] bilinearly by a factor (align_corners=False), and crop them to [K, height, width]."""
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
