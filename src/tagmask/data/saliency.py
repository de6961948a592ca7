"""Saliency maps: reading them and, for those who have none, making weak ones without a network.

They are made as in Zhu, Liang, Wei and Sun, "Saliency Optimization from Robust Background Detection", CVPR 2014: what
touches the image's border much, for its size, is background, and what differs in colour from background is salient.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from joblib import delayed
from PIL import Image
from scipy import sparse
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import spsolve
from scipy.spatial.distance import cdist

from tagmask.artifacts import atomic_write, digest, remove_unfinished
from tagmask.data.check import verify_images
from tagmask.data.images import check_shape, read_grey, read_image
from tagmask.data.samples import TaggedImages
from tagmask.errors import DataError, RunError
from tagmask.progress import Progress, run_parallel

LONG_SIDE = 400  # pixels; larger images are made smaller for what follows, the paper's numbers
SUPERPIXELS = 200
COMPACTNESS = 20  # of the superpixels (SLIC)
SIGMA_COLOUR = 10.0  # in Lab
SIGMA_SPACE = 0.25  # of the image's long side
SIGMA_BORDER = 1.0
SMOOTHNESS = 0.1  # μ
VISIBLE = 1.0  # in Lab, about the least difference that one sees
EPSILON = 1e-6


def read_saliency(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a saliency map of any size at its image's size: [H, W] float32, 0..1.

    Args:
        path: a grey picture.
        size: (H, W) of the image in pixels, to which the map is resized bilinearly.

    Raises:
        DataError: it cannot be read, or its aspect is not the image's.
    """
    grey = read_grey(path)
    check_shape(path, grey.shape, size)
    tensor = torch.from_numpy(np.array(grey))[None, None]
    return F.interpolate(tensor, size, mode="bilinear", antialias=True)[0, 0].numpy()


def saliency_hash(images: TaggedImages) -> str:
    """A hash of all the images' saliency files. Raises DataError if one cannot be read."""
    try:
        return digest([(s.id, s.saliency and zlib.crc32(s.saliency.read_bytes())) for s in images.samples])
    except OSError as error:
        raise DataError(f"saliency {error.filename} cannot be read ({error.strerror}); correct it.") from error


def write_saliency(
    images: TaggedImages, folder: Path, *, skip_bad: bool, workers: int, progress: Progress
) -> TaggedImages:
    """Write `folder`/<id>.png, the `background_saliency` of each image, of at most 400 pixels a side.

    Images that have a file there already are skipped.

    Args:
        skip_bad: leave out images that cannot be used (they are then among the `problems`) rather than raise.
        workers: processes.

    Returns:
        The images, with these files as their saliency and without masks.

    Raises:
        RunError: scikit-image is not installed, or a file cannot be written.
        DataError: an image cannot be used.
    """
    if find_spec("skimage") is None:
        raise RunError('making saliency needs scikit-image: install it with pip install "tagmask[saliency]".')
    bare = replace(images, samples=tuple(replace(sample, mask=None, saliency=None) for sample in images.samples))
    usable = verify_images(bare, skip_bad=skip_bad, workers=workers, progress=progress)
    done = replace(usable, samples=tuple(replace(s, saliency=folder / f"{s.id}.png") for s in usable.samples))
    remove_unfinished(folder)
    missing = [sample for sample in done.samples if sample.saliency and not sample.saliency.exists()]
    jobs = (delayed(_write)(sample.image, sample.saliency) for sample in missing)
    run_parallel("saliency", jobs, len(missing), workers, progress)
    return done


def _write(image: str, path: Path) -> None:
    picture = Image.fromarray(read_image(image))
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    grey = Image.fromarray(np.round(255 * background_saliency(np.asarray(picture))).astype(np.uint8))
    with atomic_write(path) as temporary:
        grey.save(temporary, format="PNG")


def background_saliency(image: np.ndarray) -> np.ndarray:
    """How salient each part of an image is, by robust background detection (Zhu et al., CVPR 2014).

    Without a network, and weak: it finds what differs in colour from what touches the image's border.

    Args:
        image: [H, W, 3] uint8 RGB, of about 400 pixels a side.

    Returns:
        [H, W] float32, 0..1, constant over each superpixel; 0 everywhere if nothing differs visibly.
    """
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    labels = slic(image, SUPERPIXELS, compactness=COMPACTNESS, start_label=0)
    places = np.moveaxis(np.indices(labels.shape), 0, -1) / max(labels.shape)
    colors, centres = _means(rgb2lab(image), labels), _means(places, labels)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    edges = _edges(labels, border)
    differences, distances = cdist(colors, colors), cdist(centres, centres)
    if differences.max() < VISIBLE:
        return np.zeros(labels.shape, np.float32)

    background = _background(edges, differences, border)
    contrast = (differences * np.exp(-(distances**2) / (2 * SIGMA_SPACE**2))) @ background
    saliency = _optimised(edges, differences, background, contrast / max(contrast.max(), EPSILON))
    stretched = (saliency - saliency.min()) / max(np.ptp(saliency), EPSILON)
    return stretched.astype(np.float32)[labels]


def _means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean of values [H, W, C] over each of the N superpixels of labels [H, W]: [N, C]."""
    flat = labels.ravel()
    sums = [np.bincount(flat, channel.ravel()) for channel in np.moveaxis(values, -1, 0)]
    return np.stack(sums, 1) / np.bincount(flat)[:, None]


def _edges(labels: np.ndarray, border: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's graph: superpixels that touch, and any two at the image's border; each pair once, as (i, j > i)."""
    touching = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:]), tuple(np.meshgrid(border, border))]
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()]) for a, b in touching], axis=1)
    low, high = np.unique(np.sort(pairs, axis=0), axis=1)
    return low[low < high], high[low < high]


def _background(edges: tuple[np.ndarray, np.ndarray], differences: np.ndarray, border: np.ndarray) -> np.ndarray:
    """How probably each superpixel is background [N], by its boundary connectivity: what is like it at the border, over
    the square root of all that is like it."""
    graph = sparse.csr_array((differences[edges], edges), differences.shape)
    geodesic = dijkstra(graph, directed=False)
    similar = np.exp(-(geodesic**2) / (2 * SIGMA_COLOUR**2))
    connectivity = similar[:, border].sum(1) / np.sqrt(similar.sum(1))
    return 1 - np.exp(-(connectivity**2) / (2 * SIGMA_BORDER**2))


def _optimised(
    edges: tuple[np.ndarray, np.ndarray], differences: np.ndarray, background: np.ndarray, foreground: np.ndarray
) -> np.ndarray:
    """The saliency s [N] of least Σ bg s² + Σ fg (s − 1)² + Σ w (s_i − s_j)², a sparse linear system."""
    weights = np.exp(-(differences[edges] ** 2) / (2 * SIGMA_COLOUR**2)) + SMOOTHNESS
    half = sparse.csr_array((weights, edges), differences.shape)
    both = half + half.T
    laplacian = sparse.diags_array(both.sum(1)) - both
    return spsolve((laplacian + sparse.diags_array(background + foreground)).tocsc(), foreground)
