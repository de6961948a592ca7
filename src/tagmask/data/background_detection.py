"""Weak saliency maps without a network, by robust background detection.

Zhu, Liang, Wei and Sun, "Saliency Optimization from Robust Background Detection", CVPR 2014. A region that touches the
border of the image over a length that is large for its size is background. A region whose color differs from the
background is salient. The optional dependency scikit-image computes the superpixels.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from joblib import delayed
from PIL import Image
from scipy import sparse
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import spsolve
from scipy.spatial.distance import cdist

from tagmask.artifacts import atomic_write, remove_unfinished
from tagmask.data.images import read_image
from tagmask.data.samples import TaggedImages
from tagmask.data.verify import verify_images
from tagmask.errors import RunError
from tagmask.progress import Progress, run_in_workers

LONG_SIDE = 400  # pixels; larger images are reduced to it, as in the paper
NUM_SUPERPIXELS = 200
COMPACTNESS = 20  # of the superpixels (SLIC)
SIGMA_COLOR = 10.0  # in Lab, σ_clr of equation 2
SIGMA_SPACE = 0.25  # as a fraction of the long side, σ_spa of equation 6
SIGMA_BORDER = 1.0  # σ_bndCon of equation 7
SMOOTHNESS = 0.1  # μ of equation 10
MIN_COLOR_DIFFERENCE = 1.0  # in Lab, about the least difference that people see
EPSILON = 1e-6

Edges = tuple[np.ndarray, np.ndarray]
"""The edges of a graph of superpixels: indices i and j > i, each [E]."""


def write_missing_saliency_maps(
    images: TaggedImages, folder: Path, *, skip_bad: bool, workers: int, progress: Progress
) -> TaggedImages:
    """Compute the saliency map of each image and write it to `folder`/<id>.png, at most 400 pixels a side.

    Existing files are kept.

    Args:
        images: the images. Their masks and saliency maps are ignored.
        folder: where the maps are written.
        skip_bad: leave out images that cannot be used (they are then among the `problems`) instead of raising.
        workers: the number of processes.
        progress: reports each image.

    Returns:
        The images with these files as their saliency and without masks.

    Raises:
        RunError: scikit-image is not installed, or a file cannot be written.
        DataError: an image cannot be used.
    """
    if find_spec("skimage") is None:
        raise RunError('computing saliency maps needs scikit-image; install it with pip install "tagmask[saliency]".')
    bare = replace(images, samples=tuple(replace(sample, mask=None, saliency=None) for sample in images.samples))
    usable = verify_images(bare, skip_bad=skip_bad, workers=workers, progress=progress)
    result = replace(usable, samples=tuple(replace(s, saliency=folder / f"{s.id}.png") for s in usable.samples))
    remove_unfinished(folder)
    pending = [sample for sample in result.samples if sample.saliency and not sample.saliency.exists()]
    jobs = (delayed(_write_saliency_map)(sample.image, sample.saliency) for sample in pending)
    run_in_workers("saliency", jobs, len(pending), workers, progress)
    return result


def _write_saliency_map(image_path: str, path: Path) -> None:
    image = Image.fromarray(read_image(image_path))
    image.thumbnail((LONG_SIDE, LONG_SIDE))
    grey = Image.fromarray(np.round(255 * compute_saliency(np.asarray(image))).astype(np.uint8))
    with atomic_write(path) as temporary:
        grey.save(temporary, format="PNG")


def compute_saliency(image: np.ndarray) -> np.ndarray:
    """Compute a saliency map by robust background detection (Zhu et al., CVPR 2014).

    The map is weak: it finds the regions whose color differs from the regions at the border of the image.

    Args:
        image: [H, W, 3] uint8 RGB, about 400 pixels a side.

    Returns:
        [H, W] float32 in 0..1, constant over each superpixel. It is 0 everywhere if no colors differ visibly.
    """
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    labels = slic(image, NUM_SUPERPIXELS, compactness=COMPACTNESS, start_label=0)
    positions = np.moveaxis(np.indices(labels.shape), 0, -1) / max(labels.shape)
    colors, centers = _superpixel_means(rgb2lab(image), labels), _superpixel_means(positions, labels)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    edges = _graph_edges(labels, border)
    color_distances, distances = cdist(colors, colors), cdist(centers, centers)
    if color_distances.max() < MIN_COLOR_DIFFERENCE:
        return np.zeros(labels.shape, np.float32)

    background = _background_probability(edges, color_distances, border)
    contrast = (color_distances * np.exp(-(distances**2) / (2 * SIGMA_SPACE**2))) @ background
    saliency = _optimize_saliency(edges, color_distances, background, contrast / max(contrast.max(), EPSILON))
    stretched = (saliency - saliency.min()) / max(np.ptp(saliency), EPSILON)
    return stretched.astype(np.float32)[labels]


def _superpixel_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the means of values [H, W, C] over the N superpixels of labels [H, W], [N, C]."""
    flat = labels.ravel()
    sums = [np.bincount(flat, channel.ravel()) for channel in np.moveaxis(values, -1, 0)]
    return np.stack(sums, 1) / np.bincount(flat)[:, None]


def _graph_edges(labels: np.ndarray, border: np.ndarray) -> Edges:
    """Return the edges of the paper's graph: superpixels that touch each other, and all pairs at the image border."""
    neighbors = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:]), tuple(np.meshgrid(border, border))]
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()]) for a, b in neighbors], axis=1)
    low, high = np.unique(np.sort(pairs, axis=0), axis=1)
    return low[low < high], high[low < high]


def _background_probability(edges: Edges, color_distances: np.ndarray, border: np.ndarray) -> np.ndarray:
    """Return the probability that each superpixel is background, [N], from its boundary connectivity.

    The boundary connectivity is the area of similar color at the border, divided by the square root of the whole area
    of similar color.
    """
    graph = sparse.csr_array((color_distances[edges], edges), color_distances.shape)
    geodesic = dijkstra(graph, directed=False)
    similar = np.exp(-(geodesic**2) / (2 * SIGMA_COLOR**2))
    connectivity = similar[:, border].sum(1) / np.sqrt(similar.sum(1))
    return 1 - np.exp(-(connectivity**2) / (2 * SIGMA_BORDER**2))


def _optimize_saliency(
    edges: Edges, color_distances: np.ndarray, background: np.ndarray, foreground: np.ndarray
) -> np.ndarray:
    """Return the saliency s [N] that minimizes Σ bg s² + Σ fg (s − 1)² + Σ w (s_i − s_j)², a sparse linear system."""
    weights = np.exp(-(color_distances[edges] ** 2) / (2 * SIGMA_COLOR**2)) + SMOOTHNESS
    half = sparse.csr_array((weights, edges), color_distances.shape)
    both = half + half.T
    laplacian = sparse.diags_array(both.sum(1)) - both
    return spsolve((laplacian + sparse.diags_array(background + foreground)).tocsc(), foreground)
