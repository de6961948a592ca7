"""Instances that a model has found by a word: the response maps judge them, and those that pass enter a label map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tagmask.large_images import resize_labels
from tagmask.maps import ResponseMaps, upsample


@dataclass(frozen=True, eq=False)
class Instance:
    """An object that a model has found by a word.

    Attributes:
        class_id: the class whose word it was.
        score: how sure the model is, 0..1.
        mask: [H, W] bool, the pixels of the object.
    """

    class_id: int
    score: float
    mask: NDArray[np.bool_]


def instances_that_pass(instances: Iterable[Instance], maps: ResponseMaps) -> list[Instance]:
    """Return the instances that the response maps confirm.

    An instance passes if no tag of the image has a higher mean activation in it than its own class. An instance
    without pixels does not pass.

    Args:
        instances: their masks have the size (H, W) of the maps' image, and their classes are among those of the maps.
        maps: the response maps of the image, upsampled here to its size, one at a time.
    """
    found = [instance for instance in instances if instance.mask.any()]
    means = np.zeros((len(maps.classes), len(found)))
    for n, grid in enumerate(maps.maps if found else []):
        activation = upsample(grid[None], maps.size)[0]
        means[n] = [activation[instance.mask].mean(dtype=np.float64) for instance in found]
    own = [maps.classes.tolist().index(instance.class_id) for instance in found]
    return [instance for i, instance in enumerate(found) if means[own[i], i] >= means[:, i].max()]


def apply_instances(labels: np.ndarray, instances: Sequence[Instance]) -> np.ndarray:
    """Return a label map in which each class that has instances consists of them.

    1. The old pixels of the classes that have instances become background.
    2. The pixels of an instance get its class, whatever they were before, also if they were ignored. Where instances
       overlap, the one with the highest score has the pixel; of equal scores, the one with the lowest class id.

    All other pixels stay as they are: background, ignored ones, and those of classes without instances.

    Args:
        labels: [H, W] uint8, 0 background, class ids, 255 ignored.
        instances: those that count. Their masks have the size of the label map, or are those of the reduced image
            (`tagmask.large_images`); what they paint is then enlarged.

    Returns:
        [H, W] uint8; the argument itself if there are no instances.
    """
    if not instances:
        return labels
    painted = np.zeros(instances[0].mask.shape, np.uint8)
    for instance in sorted(instances, key=lambda i: (i.score, -i.class_id)):
        painted[instance.mask] = instance.class_id
    painted = resize_labels(painted, (labels.shape[0], labels.shape[1]))
    kept = np.where(np.isin(labels, [instance.class_id for instance in instances]), 0, labels)
    return np.where(painted > 0, painted, kept).astype(np.uint8)
