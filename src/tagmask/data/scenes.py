"""Generated demo set: small animals over textured clutter, with tags and exact masks; made in code, no download.

Every animal is a plain rounded body in shapes, colours and textures that the classes share, with one small
high-contrast part that alone tells its class: the owl's face, the cat's head, the fish's tail, the snail's shell,
the bee's stripes, the beetle's head. Fish and snail mostly appear together, and so do bee and beetle. A classifier
trained on the tags shows what weakly supervised segmentation struggles with: response maps sit on the part,
partners light up on each other, and mIoU depends sharply on the global threshold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tagmask.artifacts import atomic_write, read_json, write_json, write_text
from tagmask.errors import DataError
from tagmask.label_map import read_label_map, write_label_map

CLASSES: tuple[str, ...] = ("owl", "cat", "fish", "snail", "bee", "beetle")
Floats = NDArray[np.float32]
Colour = tuple[int, int, int]
Window = tuple[slice, slice]
_VERSION = 1  # of the generator: raise it when the pictures change, so that an old folder is not mixed with new ones
_PARTNERS = {3: 4, 4: 3, 5: 6, 6: 5}
_PARTNER_RATE = 0.78  # of the pictures led by one of a pair, those that also show its partner
_EXTRA_RATE = 0.3  # pictures with one more animal of any class
_OCCLUDED_RATE = 0.2  # animals with a leaf across the body
_MIN_CONTRAST = 60  # RGB distance of a body to each colour of its place: edges that a dense CRF can follow
_PART_SIZE = 0.38  # radius of the part, in body radii
_PARTS = [(0.22, 1.0), (0.3, 1.08), (0.64, 1.2), (0.15, 0.92), (0.25, 0.95), (0.3, 1.12)]  # where along the body, size
_TEXTURES = (1, 3, 1, 2, 2, 3)  # only a hint: bars, checks and rings each belong to two classes, no partners
_TEXTURED_RATE = 0.6  # the other bodies are plain

_CREAM, _INK, _ORANGE, _RED = (250, 240, 214), (34, 28, 36), (244, 140, 40), (206, 52, 48)
_YELLOW, _BROWN, _GREEN = (250, 206, 52), (106, 60, 44), (150, 226, 120)
_BODY_COLOURS = np.array(
    [(203, 112, 82), (226, 176, 86), (218, 146, 152), (74, 146, 148), (138, 166, 112), (92, 120, 172), (134, 92, 140),
     (236, 218, 186), (104, 82, 76)], np.float32)  # fmt: skip
_PLACES = np.array(  # three colours each: the ground, its variation, the clutter on it
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
    """`image` uint8 [H, W, 3] RGB; `mask` uint8 [H, W], 0 background, k is `CLASSES[k - 1]`; `tags`: the k in it."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    tags: tuple[int, ...]


class _Animal(NamedTuple):
    """Lengths in picture sides; `turn` in radians, from the picture's x axis to the body's."""

    label: int
    x: float
    y: float
    radius: float
    turn: float = 0.0


class _Canvas:
    """Picture and mask in the making. Shapes are signed distances, so edges are smooth and the mask exact."""

    def __init__(self, ground: Floats) -> None:
        self.rgb, self.size = ground, len(ground)
        self.mask = np.zeros(ground.shape[:2], np.uint8)
        self.axis: Floats = (np.arange(self.size) + 0.5).astype(np.float32) / np.float32(self.size)

    def frame(self, x: float, y: float, radius: float, turn: float, reach: float) -> tuple[Window, Floats, Floats]:
        """The window `reach` radii around a point and its coordinates (u, v) [h, w] in radii, turned by `turn`."""
        edges = np.searchsorted(self.axis, np.array((-reach, reach, -reach, reach)) * radius + (x, x, y, y))
        columns, rows = slice(edges[0], edges[1]), slice(edges[2], edges[3])
        x, y, radius = float(x), float(y), float(radius)  # NumPy's float64 would make everything below float64
        dx, dy = (self.axis[None, columns] - x) / radius, (self.axis[rows, None] - y) / radius
        cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        return (rows, columns), dx * cos + dy * sin, dy * cos - dx * sin

    def cover(self, distance: Floats, radius: float) -> Floats:
        """Share of each pixel inside the shape with this signed distance, given in radii."""
        return (0.5 - distance * np.float32(radius * self.size)).clip(0, 1)

    def paint(self, window: Window, cover: Floats, color: Floats | Colour, label: int | None = None) -> None:
        """Blend `colour` in by `cover` [h, w] in 0..1; `label` takes the pixels covered by half or more."""
        rgb = self.rgb[window]
        rgb += cover[..., None] * (np.asarray(color, np.float32) - rgb)
        if label is not None:
            self.mask[window][cover >= 0.5] = label


def make_scene(index: int, *, seed: int = 0, size: int = 96) -> Scene:
    """Scene `index` of the endless set `seed`, [size, size].

    Each index has its own generator, so a scene does not depend on which others are made. Another size shows the
    same scene at another resolution. Raises ValueError where index or seed is negative or size is below 16.
    """
    if index < 0 or seed < 0 or size < 16:
        raise ValueError(f"index and seed must be 0 or more, size 16 or more; got {index}, {seed}, {size}")
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    place = _PLACES[rng.integers(len(_PLACES))]
    blend = np.clip(0.5 + 0.6 * _smooth_noise(rng, 5, size), 0, 1)[..., None]
    grain = 1 + 0.05 * _smooth_noise(rng, 14, size) + 0.06 * _smooth_noise(rng, 48, size)
    ground = (place[0] + blend * (place[1] - place[0])) * grain[..., None]
    canvas = _Canvas(_scatter_clutter(rng, ground, place))
    animals = _arrange(rng)
    for animal in animals:
        _paint_body(rng, canvas, animal, place)
    for animal in animals:  # after all bodies, so that no part is hidden by one
        _paint_part(canvas, animal)
    for animal in animals:
        _occlude(rng, canvas, animal, place)
    return Scene(_light(rng, canvas.rgb), canvas.mask, _labels_in(canvas.mask))


def _labels_in(mask: NDArray[np.uint8]) -> tuple[int, ...]:
    return tuple(int(label) for label in np.unique(mask) if label)


def _smooth_noise(rng: np.random.Generator, cells: int, size: int) -> Floats:
    """Noise [size, size] from `cells` × `cells` draws, a number that does not depend on the size."""
    grid = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _leaf(u: Floats, v: Floats, width: float | Floats) -> Floats:
    """Signed distance to a leaf that reaches from -1 to 1 on the u axis."""
    return np.abs(v) - (1 - u * u) * width


def _disc(u: Floats, v: Floats, x: float, y: float, radius: float) -> Floats:
    return np.hypot(u - x, v - y) - radius


def _peak(u: Floats, v: Floats, x: float, y: float, half: float, height: float) -> Floats:
    """Signed distance to a triangle with its base at (x, y) and its tip `height` above it (negative: below)."""
    rise = (y - v) / height
    return np.maximum(np.abs(u - x) - half * (1 - rise), -rise * abs(height))


def _scatter_clutter(rng: np.random.Generator, ground: Floats, place: Floats, count: int = 64) -> Floats:
    """The ground [H, W, 3] under leaves, blades and pebbles in the place's colours; drawn together, for speed."""
    size, longest = len(ground), 0.085
    at = rng.random((2, count, 1), np.float32)
    turns = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    radii = rng.uniform(0.025, longest, (count, 1, 1)).astype(np.float32)
    widths = rng.choice(np.array((0.18, 0.35, 0.8), np.float32), (count, 1, 1))  # the last: a pebble
    colors = place[rng.integers(0, 3, count)] * rng.uniform(0.62, 1.42, (count, 1)) + rng.normal(0, 7, (count, 3))
    patch = int(2 * longest * size) + 3
    corners = np.floor((at - radii[..., 0]) * size).astype(int)
    dx, dy = ((corners + np.arange(patch) + 0.5) / size - at).astype(np.float32)
    cos, sin = (np.cos(turns) / radii).astype(np.float32), (np.sin(turns) / radii).astype(np.float32)
    u, v = dx[:, None] * cos + dy[..., None] * sin, dy[..., None] * cos - dx[:, None] * sin
    distances = np.where(widths < 0.5, _leaf(u, v, widths), _disc(u, v / 0.8, 0, 0, 0.7))
    covers = (0.5 - distances * (radii * size)).clip(0, 1)[..., None]
    paints = colors[:, None, None].astype(np.float32) * (1 - 0.12 * v[..., None])
    wide = np.pad(ground, ((patch, patch), (patch, patch), (0, 0)))
    for cover, paint, (left, top) in zip(covers, paints, corners[..., 0].T + patch, strict=True):
        under = wide[top : top + patch, left : left + patch]
        under += cover * (paint - under)
    return wide[patch:-patch, patch:-patch]


def _arrange(rng: np.random.Generator) -> list[_Animal]:
    """Which animals a scene shows and where, from back to front: partners side by side, others where there is room."""
    lead, extra = (int(label) for label in rng.integers(1, len(CLASSES) + 1, 2))
    with_partner, with_extra = rng.random(2) < (_PARTNER_RATE, _EXTRA_RATE)
    partner = [_PARTNERS[lead]] if with_partner and lead in _PARTNERS else []
    labels = [lead, *partner, *([extra] if with_extra else [])]
    placed: list[_Animal] = []
    for label in labels:
        radius = rng.uniform(0.15, 0.24) * (1.15, 1.0, 0.85)[len(labels) - 1]
        x, y = rng.uniform(0.18, 0.82, (2, 32))
        gaps = np.full(32, 1.0)
        for other in placed:
            gaps = np.minimum(gaps, np.hypot(x - other.x, y - other.y) - 0.98 * (radius + other.radius))
        beside = label in _PARTNERS and len(placed) == 1 and gaps.max() >= 0
        spot = int(np.argmin(np.where(gaps >= 0, gaps, 9)) if beside else np.argmax(gaps))
        placed.append(_Animal(label, x[spot], y[spot], max(radius + min(0.0, gaps[spot]), 0.1)))
    tilts, dice = rng.uniform(-0.6, 0.6, 3), rng.uniform(0, 0.05, 3)
    turned = [
        animal._replace(turn=max((tilt, tilt + np.pi), key=lambda turn: _room(animal, turn, placed) + die * (turn > 1)))
        for animal, tilt, die in zip(placed, tilts, dice, strict=False)
    ]
    return sorted(turned, key=lambda animal: animal.y)


def _room(animal: _Animal, turn: float, others: list[_Animal]) -> float:
    """Free space around the animal's front when it looks along `turn`: to the edges and to the other bodies."""
    x, y = animal.x + 1.1 * animal.radius * np.cos(turn), animal.y + 1.1 * animal.radius * np.sin(turn)
    gaps = [np.hypot(x - other.x, y - other.y) - other.radius for other in others if other is not animal]
    return float(min(x, 1 - x, y, 1 - y, *gaps, 0.15))


def _paint_body(rng: np.random.Generator, canvas: _Canvas, animal: _Animal, place: Floats) -> None:
    """Soft shadow, then a rounded body in one of the shapes, colours and textures that the classes share."""
    label, x, y, radius, turn = animal
    width, taper, bend, phase = rng.uniform((0.74, -0.16, -0.18, 0), (0.95, 0.16, 0.18, 2 * np.pi))
    texture = _TEXTURES[label - 1] if rng.random() < _TEXTURED_RATE else 0
    contrast = np.linalg.norm(_BODY_COLOURS[:, None] - place[None], axis=2).min(axis=1)
    color = rng.choice(_BODY_COLOURS[contrast > _MIN_CONTRAST]) * rng.uniform(0.92, 1.08, 3)
    window, u, v = canvas.frame(x + 0.01, y + 0.25 * radius, radius, turn, 1.5)
    canvas.paint(window, np.clip(1.35 - np.hypot(u, v / width), 0, 0.35), (20, 18, 30))
    window, u, v = canvas.frame(x, y, radius, turn, 1.3)
    reach = np.hypot(u, (v + bend * (u * u - 0.3)) / (width * (1 + taper * u)))
    bars, checks, rings = np.sin(9 * u + phase), np.sin(10 * u + phase) * np.sin(10 * v), np.sin(12 * reach + phase)
    down = u * np.sin(turn) + v * np.cos(turn)  # in the picture: light comes from above
    shade = 1 + 0.09 * (0 * u, bars, checks, rings)[texture] - 0.14 * down - 0.48 * np.clip(reach - 0.75, 0, 1)
    canvas.paint(window, canvas.cover((reach - 1) * 0.85, radius), color * shade[..., None], label)


def _paint_part(canvas: _Canvas, animal: _Animal) -> None:
    """The small part that tells the class."""
    name, turn = CLASSES[animal.label - 1], animal.turn
    along, scale = _PARTS[animal.label - 1]
    x, y = animal.x + along * animal.radius * np.cos(turn), animal.y + along * animal.radius * np.sin(turn)
    if name in ("owl", "cat"):  # faces stay upright, half as tilted as the body
        turn = 0.5 * float((turn + np.pi / 2) % np.pi - np.pi / 2)
    radius = scale * _PART_SIZE * animal.radius
    window, u, v = canvas.frame(x, y, radius, turn, 1.5)
    for distance, color in _part_layers(name, u, v):
        canvas.paint(window, canvas.cover(distance, radius), color, animal.label)


def _part_layers(name: str, u: Floats, v: Floats) -> list[tuple[Floats, Colour]]:
    """Signed distances and colours of a part of radius about 1, from the lowest layer up."""
    match name:
        case "owl":
            face = [(_disc(u, v / 0.78, 0, 0, 1.05), _BROWN)]
            eyes = [(_disc(u, v, x, -0.05, r), c) for r, c in ((0.46, _CREAM), (0.22, _INK)) for x in (-0.48, 0.48)]
            return [*face, *eyes, (_peak(u, v, 0, 0.2, 0.2, -0.5), _ORANGE)]
        case "cat":
            ears = [(_peak(u, v, x, -0.3, 0.42, 0.95), _INK) for x in (-0.52, 0.52)]
            eyes = [(_disc(u, v, x, 0, 0.2), _GREEN) for x in (-0.38, 0.38)]
            return [*ears, (_disc(u, v / 0.8, 0, 0.1, 0.92), _INK), *eyes, (_disc(u, v, 0, 0.48, 0.24), _CREAM)]
        case "fish":
            fan = np.maximum(np.abs(v) - 0.28 - 0.45 * (u + 0.9), np.abs(u) - 0.95)
            return [(fan, _CREAM), (np.maximum(fan, 0.24 - np.abs((u + 0.15) % 0.9 - 0.45)), _RED)]
        case "snail":
            rim, spiral = _disc(u, v, 0, 0, 1), -0.12 * np.sin(np.arctan2(v, u) + 8 * np.hypot(u, v))
            return [(rim, _BROWN), (np.maximum(rim + 0.12, spiral), _CREAM)]
        case "bee":
            rim = _disc(u, v / 0.95, 0, 0, 1)
            return [(rim, _INK), (np.maximum(rim, 0.14 - np.abs(u % 0.62 - 0.31)), _YELLOW)]
        case _:  # the beetle
            horns = [np.maximum(np.abs(v * y - 0.3 - 0.35 * u) - 0.11, np.abs(u - 0.65) - 0.55) for y in (-1, 1)]
            tips = [(_disc(u, v, 1.15, y, 0.22), _RED) for y in (-0.7, 0.7)]
            eyes = [(_disc(u, v, 0.15, y, 0.17), _CREAM) for y in (-0.32, 0.32)]
            return [*((horn, _INK) for horn in horns), *tips, (_disc(u, v, 0, 0, 0.72), _INK), *eyes]


def _occlude(rng: np.random.Generator, canvas: _Canvas, animal: _Animal, place: Floats) -> None:
    """Now and then a long leaf across the body, behind the part."""
    chance, along, tilt, slim = rng.random(4)
    if chance < _OCCLUDED_RATE:
        offset, radius = (0.1 + 0.5 * along) * animal.radius, 1.1 * animal.radius
        x, y = animal.x - offset * np.cos(animal.turn), animal.y - offset * np.sin(animal.turn)
        window, u, v = canvas.frame(x, y, radius, np.pi / 2 + tilt - 0.5, 1.1)
        cover = canvas.cover(_leaf(u, v, 0.08 + 0.08 * slim), radius)
        canvas.paint(window, cover, place[2] * (1.1 - 0.6 * v[..., None]), 0)


def _light(rng: np.random.Generator, rgb: Floats) -> NDArray[np.uint8]:
    """Brightness, tint, a slope of light across the picture, then sensor noise."""
    gain, tint, (across, down) = rng.uniform(0.72, 1.16), rng.uniform(0.94, 1.06, 3), rng.uniform(-0.25, 0.25, 2)
    axis = np.linspace(-0.5, 0.5, len(rgb))
    light = (gain * (1 + across * axis[None, :, None] + down * axis[:, None, None]) * tint).astype(np.float32)
    lit = rgb * light + 3 * rng.standard_normal(rgb.shape, np.float32)
    return (lit + 0.5).clip(0, 255).astype(np.uint8)


def simulate_saliency(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a saliency network might say: simulated from the mask [H, W], class-agnostic, and wrong at times.

    One class in eight is missed, one picture in six has a salient spot that is background; edges are blurred and a
    little off, levels uneven. Returns uint8 [ceil(H/2), ceil(W/2)], 255 the most salient.
    """
    height, width = ((side + 1) // 2 for side in mask.shape)
    missed = rng.random(len(CLASSES) + 1) < 1 / 8
    salient = np.where((mask > 0) & ~missed[mask], rng.uniform(0.75, 1), 0)
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
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write scenes 0 .. n_train + n_val - 1 as a folder in VOC layout; the last `n_val` are the split val.

    JPEGImages/<id>.png (PNG: exact), SegmentationClass/<id>.png (indexed), Saliency/<id>.png (grey, half size,
    simulated: see `simulate_saliency`), ImageSets/Segmentation/{train,val}.txt; last, tags.csv (image,tags,split) and
    classes.txt (in id order). A call that was cut off goes on where it was. `progress` gets 1 for each scene.
    Raises DataError where the folder holds something else or scenes of another seed or size, RunError where it cannot
    be written.
    """
    if num_train < 0 or num_val < 0:
        raise ValueError(f"n_train and n_val must be 0 or more; got {num_train}, {num_val}")
    origin, record = {"scenes": _VERSION, "seed": seed, "size": size}, folder / "scenes.json"
    if record.exists() and (found := read_json(record)) != origin:
        raise DataError(f"{folder} holds scenes made with {found}, not {origin}: choose another folder or remove it.")
    if not record.exists() and folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and holds no scenes: choose another folder.")
    write_json(record, origin)
    splits, table = {"train": "", "val": ""}, "image,tags,split\n"
    for index in range(num_train + num_val):
        name, tags = _write_scene(folder, index, seed, size)
        split = "train" if index < num_train else "val"
        splits[split] += f"{name}\n"
        table += f"{name},{';'.join(CLASSES[tag - 1] for tag in tags)},{split}\n"
        if progress:
            progress(1)
    for split, names in splits.items():
        write_text(folder / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    write_text(folder / "tags.csv", table)
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in CLASSES))


def _write_scene(folder: Path, index: int, seed: int, size: int) -> tuple[str, tuple[int, ...]]:
    """Write a scene's mask, saliency and image, unless they are there. Returns its name and tags."""
    name = f"scene_{index:05d}"
    image, mask, saliency = (folder / kind / f"{name}.png" for kind in ("JPEGImages", "SegmentationClass", "Saliency"))
    if image.exists() and mask.exists() and saliency.exists():
        return name, _labels_in(read_label_map(mask))
    scene = make_scene(index, seed=seed, size=size)
    grey = simulate_saliency(scene.mask, np.random.Generator(np.random.PCG64([seed, index, 1])))
    write_label_map(mask, scene.mask)
    for path, pixels in ((saliency, grey), (image, scene.image)):
        with atomic_write(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
    return name, scene.tags
