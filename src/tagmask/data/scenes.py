"""A generated demo set: images of small animals over textured clutter, with tags and exact masks.

Every animal has a plain rounded body. The classes share the shapes, colors and textures of the bodies. Only one small
part with high contrast identifies the class: the owl's face, the cat's head, the fish's tail, the snail's shell, the
bee's stripes, the beetle's head. Fish and snail mostly appear together, and so do bee and beetle.

A classifier that is trained on the tags therefore shows the difficulties of weakly supervised segmentation: response
maps highlight the part instead of the body, they respond to classes that often appear together, and the mIoU depends
strongly on the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tagmask.artifacts import atomic_write, read_json, write_json, write_text
from tagmask.data.scene_shapes import Canvas, Floats, leaf, part_layers, scatter_clutter, smooth_noise
from tagmask.errors import DataError
from tagmask.label_map import read_label_map, write_label_map

CLASSES: tuple[str, ...] = ("owl", "cat", "fish", "snail", "bee", "beetle")
_VERSION = 1  # increase it when the images change, so that old and new images are not mixed in one folder
_PARTNERS = {3: 4, 4: 3, 5: 6, 6: 5}  # class ids that mostly appear together
_PARTNER_RATE = 0.78  # of the scenes whose first animal has a partner
_EXTRA_RATE = 0.3  # scenes with one more animal of any class
_OCCLUDED_RATE = 0.2  # animals with a leaf across the body
_MIN_CONTRAST = 60  # RGB distance of a body to each color of its habitat, so that a dense CRF can follow its edges
_PART_SIZE = 0.38  # radius of the part, in body radii
_PARTS = [(0.22, 1.0), (0.3, 1.08), (0.64, 1.2), (0.15, 0.92), (0.25, 0.95), (0.3, 1.12)]  # (position on body, size)
_TEXTURES = (1, 3, 1, 2, 2, 3)  # a weak hint: bars, checks and rings each belong to two classes that are no partners
_TEXTURED_RATE = 0.6  # the other bodies have no texture

_BODY_COLORS = np.array(
    [(203, 112, 82), (226, 176, 86), (218, 146, 152), (74, 146, 148), (138, 166, 112), (92, 120, 172), (134, 92, 140),
     (236, 218, 186), (104, 82, 76)], np.float32)  # fmt: skip
_HABITATS = np.array(  # three colors each: the ground, its variation, and the clutter on it
    [
        [(92, 128, 72), (122, 150, 84), (64, 100, 62)],  # meadow
        [(206, 184, 146), (190, 164, 124), (168, 146, 116)],  # sand
        [(54, 98, 112), (70, 120, 128), (44, 80, 84)],  # pond
        [(86, 66, 58), (112, 86, 66), (128, 100, 60)],  # forest floor
        [(204, 212, 220), (182, 196, 208), (150, 166, 178)],  # snow
        [(70, 62, 96), (92, 76, 112), (60, 72, 92)],  # dusk
    ],
    np.float32,
)


@dataclass(frozen=True)
class Scene:
    """One generated image.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        mask: [H, W] uint8; 0 is background, and k is the class `CLASSES[k - 1]`.
        tags: the class ids in the mask, ascending.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    tags: tuple[int, ...]


class _Animal(NamedTuple):
    """Class id, position, radius and direction. Lengths are fractions of the image side; the angle is in radians."""

    label: int
    x: float
    y: float
    radius: float
    angle: float = 0.0


def make_scene(index: int, *, seed: int = 0, size: int = 96) -> Scene:
    """Generate one scene.

    A scene does not depend on which other scenes are generated. With another size it shows the same scene at another
    resolution.

    Args:
        index: the number of the scene, from 0.
        seed: the seed of the set; every set is endless.
        size: height and width in pixels.

    Raises:
        ValueError: index or seed is negative, or size is below 16.
    """
    if index < 0 or seed < 0 or size < 16:
        raise ValueError(f"index and seed must be 0 or more, size 16 or more; got {index}, {seed}, {size}")
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    habitat = _HABITATS[rng.integers(len(_HABITATS))]
    blend = np.clip(0.5 + 0.6 * smooth_noise(rng, 5, size), 0, 1)[..., None]
    grain = 1 + 0.05 * smooth_noise(rng, 14, size) + 0.06 * smooth_noise(rng, 48, size)
    ground = (habitat[0] + blend * (habitat[1] - habitat[0])) * grain[..., None]
    canvas = Canvas(scatter_clutter(rng, ground, habitat))
    animals = _arrange_animals(rng)
    for animal in animals:
        _paint_body(rng, canvas, animal, habitat)
    for animal in animals:  # after all bodies, so that no body hides a part
        _paint_part(canvas, animal)
    for animal in animals:
        _maybe_paint_occluder(rng, canvas, animal, habitat)
    return Scene(_add_lighting_and_noise(rng, canvas.rgb), canvas.mask, _class_ids_in(canvas.mask))


def _class_ids_in(mask: NDArray[np.uint8]) -> tuple[int, ...]:
    return tuple(int(label) for label in np.unique(mask) if label)


def _arrange_animals(rng: np.random.Generator) -> list[_Animal]:
    """Return the animals of a scene, from back to front. Partners stand side by side, others where there is space."""
    first, extra = (int(label) for label in rng.integers(1, len(CLASSES) + 1, 2))
    with_partner, with_extra = rng.random(2) < (_PARTNER_RATE, _EXTRA_RATE)
    partner = [_PARTNERS[first]] if with_partner and first in _PARTNERS else []
    labels = [first, *partner, *([extra] if with_extra else [])]
    placed: list[_Animal] = []
    for label in labels:
        radius = rng.uniform(0.15, 0.24) * (1.15, 1.0, 0.85)[len(labels) - 1]
        x, y = rng.uniform(0.18, 0.82, (2, 32))
        gaps = np.full(32, 1.0)
        for other in placed:
            gaps = np.minimum(gaps, np.hypot(x - other.x, y - other.y) - 0.98 * (radius + other.radius))
        is_beside = label in _PARTNERS and len(placed) == 1 and gaps.max() >= 0
        spot = int(np.argmin(np.where(gaps >= 0, gaps, 9)) if is_beside else np.argmax(gaps))
        placed.append(_Animal(label, x[spot], y[spot], max(radius + min(0.0, gaps[spot]), 0.1)))
    tilts, bonuses = rng.uniform(-0.6, 0.6, 3), rng.uniform(0, 0.05, 3)
    rotated = [
        animal._replace(
            angle=max((tilt, tilt + np.pi), key=lambda angle: _free_space(animal, angle, placed) + bonus * (angle > 1))
        )
        for animal, tilt, bonus in zip(placed, tilts, bonuses, strict=False)
    ]
    return sorted(rotated, key=lambda animal: animal.y)


def _free_space(animal: _Animal, angle: float, others: list[_Animal]) -> float:
    """Return the distance of the animal's front, if it faces along `angle`, to the image border and other bodies."""
    x, y = animal.x + 1.1 * animal.radius * np.cos(angle), animal.y + 1.1 * animal.radius * np.sin(angle)
    gaps = [np.hypot(x - other.x, y - other.y) - other.radius for other in others if other is not animal]
    return float(min(x, 1 - x, y, 1 - y, *gaps, 0.15))


def _paint_body(rng: np.random.Generator, canvas: Canvas, animal: _Animal, habitat: Floats) -> None:
    """Paint a soft shadow and a rounded body, whose shape, color and texture say little about the class."""
    label, x, y, radius, angle = animal
    width, taper, bend, phase = rng.uniform((0.74, -0.16, -0.18, 0), (0.95, 0.16, 0.18, 2 * np.pi))
    texture = _TEXTURES[label - 1] if rng.random() < _TEXTURED_RATE else 0
    contrast = np.linalg.norm(_BODY_COLORS[:, None] - habitat[None], axis=2).min(axis=1)
    color = rng.choice(_BODY_COLORS[contrast > _MIN_CONTRAST]) * rng.uniform(0.92, 1.08, 3)
    window, u, v = canvas.frame(x + 0.01, y + 0.25 * radius, radius, angle, 1.5)
    canvas.paint(window, np.clip(1.35 - np.hypot(u, v / width), 0, 0.35), (20, 18, 30))
    window, u, v = canvas.frame(x, y, radius, angle, 1.3)
    reach = np.hypot(u, (v + bend * (u * u - 0.3)) / (width * (1 + taper * u)))
    bars, checks, rings = np.sin(9 * u + phase), np.sin(10 * u + phase) * np.sin(10 * v), np.sin(12 * reach + phase)
    down = u * np.sin(angle) + v * np.cos(angle)  # the light comes from above
    shade = 1 + 0.09 * (0 * u, bars, checks, rings)[texture] - 0.14 * down - 0.48 * np.clip(reach - 0.75, 0, 1)
    canvas.paint(window, canvas.coverage((reach - 1) * 0.85, radius), color * shade[..., None], label)


def _paint_part(canvas: Canvas, animal: _Animal) -> None:
    """Paint the small part that identifies the class."""
    name, angle = CLASSES[animal.label - 1], animal.angle
    along, scale = _PARTS[animal.label - 1]
    x, y = animal.x + along * animal.radius * np.cos(angle), animal.y + along * animal.radius * np.sin(angle)
    if name in ("owl", "cat"):  # faces stay upright, half as tilted as the body
        angle = 0.5 * float((angle + np.pi / 2) % np.pi - np.pi / 2)
    radius = scale * _PART_SIZE * animal.radius
    window, u, v = canvas.frame(x, y, radius, angle, 1.5)
    for distance, color in part_layers(name, u, v):
        canvas.paint(window, canvas.coverage(distance, radius), color, animal.label)


def _maybe_paint_occluder(rng: np.random.Generator, canvas: Canvas, animal: _Animal, habitat: Floats) -> None:
    """Paint a long leaf across some of the bodies, behind the part."""
    chance, along, tilt, slim = rng.random(4)
    if chance < _OCCLUDED_RATE:
        offset, radius = (0.1 + 0.5 * along) * animal.radius, 1.1 * animal.radius
        x, y = animal.x - offset * np.cos(animal.angle), animal.y - offset * np.sin(animal.angle)
        window, u, v = canvas.frame(x, y, radius, np.pi / 2 + tilt - 0.5, 1.1)
        coverage = canvas.coverage(leaf(u, v, 0.08 + 0.08 * slim), radius)
        canvas.paint(window, coverage, habitat[2] * (1.1 - 0.6 * v[..., None]), 0)


def _add_lighting_and_noise(rng: np.random.Generator, rgb: Floats) -> NDArray[np.uint8]:
    """Apply brightness, a tint and a gradient of light across the image, then add sensor noise."""
    gain, tint, (across, down) = rng.uniform(0.72, 1.16), rng.uniform(0.94, 1.06, 3), rng.uniform(-0.25, 0.25, 2)
    axis = np.linspace(-0.5, 0.5, len(rgb))
    light = (gain * (1 + across * axis[None, :, None] + down * axis[:, None, None]) * tint).astype(np.float32)
    lit = rgb * light + 3 * rng.standard_normal(rgb.shape, np.float32)
    return (lit + 0.5).clip(0, 255).astype(np.uint8)


def simulate_saliency(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Simulate the imperfect output of a class-agnostic saliency network from a mask.

    A class is missed with probability 1/8. One image in six has a salient spot on the background. Edges are blurred
    and slightly shifted, and the saliency of objects varies.

    Args:
        mask: [H, W].
        rng: the random generator.

    Returns:
        [ceil(H / 2), ceil(W / 2)] uint8; 255 is the most salient.
    """
    height, width = ((side + 1) // 2 for side in mask.shape)
    is_missed = rng.random(len(CLASSES) + 1) < 1 / 8
    salient = np.where((mask > 0) & ~is_missed[mask], rng.uniform(0.75, 1), 0)
    if rng.random() < 1 / 6:
        (x, y), radius = rng.random(2), rng.uniform(0.08, 0.16)
        rows, columns = (np.arange(side) / side for side in mask.shape)
        salient[np.hypot(columns[None] - x, rows[:, None] - y) < radius] = 0.8
    shifted = np.roll(salient, rng.integers(-1, 2, 2), axis=(0, 1)).astype(np.float32)
    coarse = Image.fromarray(shifted).resize((max(width // 3, 1), max(height // 3, 1)), Image.Resampling.BOX)
    blurred = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip((0.03 + 0.95 * blurred + rng.normal(0, 0.04, (height, width))) * 255, 0, 255).astype(np.uint8)


def write_scenes(
    folder: Path,
    *,
    num_train: int,
    num_val: int,
    size: int = 96,
    seed: int = 0,
    advance: Callable[[int], None] = lambda step: None,
) -> None:
    """Write scenes 0 .. num_train + num_val - 1 to a folder in VOC layout.

    The files are JPEGImages/<id>.png (lossless), SegmentationClass/<id>.png (indexed), Saliency/<id>.png (grey, half
    size, from `simulate_saliency`), ImageSets/Segmentation/train.txt and val.txt, tags.csv (image,tags,split) and
    classes.txt (in the order of the ids). An interrupted call can be resumed: existing scenes are kept.

    Args:
        folder: where the files are written.
        num_train: the number of scenes in the split train.
        num_val: the number of scenes in the split val, which follow those of train.
        size: height and width in pixels.
        seed: the seed of the set.
        advance: called with 1 after each scene.

    Raises:
        DataError: the folder holds something else, or scenes of another seed or size.
        RunError: a file cannot be written.
    """
    if num_train < 0 or num_val < 0:
        raise ValueError(f"num_train and num_val must be 0 or more; got {num_train}, {num_val}")
    origin, record = {"scenes": _VERSION, "seed": seed, "size": size}, folder / "scenes.json"
    if record.exists() and (old_origin := read_json(record)) != origin:
        raise DataError(
            f"{folder} holds scenes made with {old_origin}, not {origin}: choose another folder or remove it."
        )
    if not record.exists() and folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and holds no scenes: choose another folder.")
    write_json(record, origin)
    splits, table = {"train": "", "val": ""}, "image,tags,split\n"
    for index in range(num_train + num_val):
        name, tags = _write_missing_scene(folder, index, seed, size)
        split = "train" if index < num_train else "val"
        splits[split] += f"{name}\n"
        table += f"{name},{';'.join(CLASSES[tag - 1] for tag in tags)},{split}\n"
        advance(1)
    for split, names in splits.items():
        write_text(folder / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    write_text(folder / "tags.csv", table)
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in CLASSES))


def _write_missing_scene(folder: Path, index: int, seed: int, size: int) -> tuple[str, tuple[int, ...]]:
    """Write the mask, saliency map and image of a scene, unless they exist. Returns its name and tags."""
    name = f"scene_{index:05d}"
    image, mask, saliency = (folder / kind / f"{name}.png" for kind in ("JPEGImages", "SegmentationClass", "Saliency"))
    if image.exists() and mask.exists() and saliency.exists():
        return name, _class_ids_in(read_label_map(mask))
    scene = make_scene(index, seed=seed, size=size)
    grey = simulate_saliency(scene.mask, np.random.Generator(np.random.PCG64([seed, index, 1])))
    write_label_map(mask, scene.mask)
    for path, pixels in ((saliency, grey), (image, scene.image)):
        with atomic_write(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
    return name, scene.tags
