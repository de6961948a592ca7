"""What the fuzzer mutates: valid files, and the functions that read them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tagmask
from tagmask.artifacts import write_json
from tagmask.compute import Compute
from tagmask.data.images import image_size, read_bytes, read_grey, read_image
from tagmask.data.samples import PngMask, Sample, TaggedImages
from tagmask.data.shard_writer import pack_shards
from tagmask.data.source import DataSource
from tagmask.data.verified_files import read_verified, write_verified
from tagmask.evaluate import Evaluation, MapScores
from tagmask.judge import Recommendation
from tagmask.label_map import read_label_map, write_label_map
from tagmask.maps import ResponseMaps
from tagmask.measure import ActivationStats
from tagmask.measure.metrics import SegmentationMetric, ThresholdCurveMetric
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.models.segmenter import Segmenter
from tagmask.outputs.coco import rle_annotation
from tagmask.predict import Predictor
from tagmask.progress import Reporter
from tagmask.recipe import load_recipe, recipe_names, recipe_text
from tagmask.report.notebook import summary_html
from tagmask.run_folder import RunFolder, RunSources
from tagmask.stage_files import discard_damaged_files, files_are_as_remembered, remember_files
from tagmask.stage_folder import StageFolder
from tagmask.training_curves import read_history

CLASSES = ("cat", "dog", "red panda")
SIZE = (24, 30)  # (H, W) of the images


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: for the report of the campaign.
        kind: which tokens the mutations insert, see `mutate`.
        seeds: valid inputs.
        read: reads a mutated input; it may raise a TagmaskError.
        weight: how often it is drawn, relative to the others.
    """

    name: str
    kind: str
    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    weight: float = 1.0


def make_targets(folder: Path) -> list[Target]:
    """Write valid files below a folder and return all targets."""
    return [*_data_targets(folder), *_picture_targets(folder), *_recipe_targets(folder), *_run_targets(folder / "run")]


def _file_reader(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def write_and_read(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return write_and_read


def _data_targets(folder: Path) -> Iterator[Target]:
    images, voc = folder / "images", folder / "voc"
    for place in (images, voc / "JPEGImages"):
        place.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (SIZE[1], SIZE[0]), (i, 2, 3)).save(place / f"{i}.jpg")

    def read_table(path: Path) -> None:
        DataSource(root=str(images), tags=str(path)).read()

    def read_shard(path: Path) -> None:
        for sample in DataSource(root=str(path.parent)).read().samples:
            read_bytes(sample.image)
            if sample.mask:
                sample.mask.read()

    masks = [PngMask(images / f"{i}.png") for i in range(4)]
    samples = tuple(Sample(f"a/{i}", str(images / f"{i}.jpg"), (1,), masks[i]) for i in range(4))
    for mask in masks:
        write_label_map(mask.path, np.ones(SIZE, np.uint8))
    shards = folder / "shards"
    [shard] = pack_shards(TaggedImages(CLASSES, samples), str(shards), progress=Reporter().progress).urls
    for mask in masks:
        mask.path.unlink()
    yield Target("shard", "binary", [Path(shard).read_bytes()], _file_reader(Path(shard), read_shard), 2)

    tables = {
        "csv": "image,tags\n0.jpg,cat;dog\n1.jpg,\n2.jpg,red panda\n3.jpg,dog\n",
        "tsv": "image\ttags\tsplit\n0.jpg\tcat;dog\ttrain\n1.jpg\t\tval\n2.jpg\tred panda\ttrain\n3.jpg\tdog\tval\n",
        "jsonl": "".join(json.dumps({"image": f"{i}.jpg", "tags": [CLASSES[i % 3]]}) + "\n" for i in range(4)),
    }
    for suffix, text in tables.items():
        kind = "json" if suffix == "jsonl" else "text"
        reader = _file_reader(folder / f"tags.{suffix}", read_table)
        yield Target(
            f"table {suffix}", kind, [text.encode(), text.replace("\n", "\r\n").encode("utf-8-sig")], reader, 2
        )

    (voc / "Annotations").mkdir()
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    (voc / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n2\n3\n")
    xml = (
        "<annotation><filename>0.jpg</filename><size><width>30</width><height>24</height><depth>3</depth></size>"
        "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax>"
        "<ymax>8</ymax></bndbox></object><object><name>dog</name><difficult>1</difficult></object></annotation>"
    )
    for i in range(4):
        (voc / "Annotations" / f"{i}.xml").write_text(xml)

    def read_voc(path: Path) -> None:
        DataSource(root=str(voc), split="train").read()

    yield Target("VOC XML", "xml", [xml.encode()], _file_reader(voc / "Annotations" / "1.xml", read_voc), 3)

    def read_list(path: Path) -> None:
        DataSource(root=str(voc), split=str(path)).read()

    yield Target("VOC list", "text", [b"0\n1\n2\n", b"0 1\n1 -1\n2 0\n"], _file_reader(folder / "list.txt", read_list))

    mask = np.zeros(SIZE, bool)
    mask[3:9, 4:20] = True
    polygon = [4.0, 3.0, 20.0, 3.0, 20.0, 9.0, 4.0, 9.0]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": SIZE[1], "height": SIZE[0]} for i in range(4)],
        "categories": [{"id": 10 * i, "name": name} for i, name in enumerate(CLASSES, 1)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 10, "iscrowd": 0, **rle_annotation(mask)},
            {"id": 2, "image_id": 1, "category_id": 20, "iscrowd": 0, "area": 96, "segmentation": [polygon]},
        ],
    }

    def read_coco(path: Path) -> None:
        for sample in DataSource(root=str(images), annotations=str(path)).read().samples:
            if sample.mask:
                sample.mask.read()

    yield Target("COCO JSON", "json", [json.dumps(coco).encode()], _file_reader(folder / "coco.json", read_coco), 3)

    def read_class_list(path: Path) -> None:
        (folder / "tags.csv").write_text(tables["csv"])
        DataSource(root=str(images), tags=str(folder / "tags.csv"), class_list=str(path)).read()

    names = "\n".join(CLASSES).encode()
    yield Target("class list", "text", [names], _file_reader(folder / "classes.txt", read_class_list))


def _encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def _picture_targets(folder: Path) -> Iterator[Target]:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation
    seeds = {
        "png": [_encoded(photo, "PNG"), _encoded(photo.convert("RGBA"), "PNG"), _encoded(photo.convert("P"), "PNG")],
        "jpg": [_encoded(photo, "JPEG", exif=exif), _encoded(photo.convert("CMYK"), "JPEG"), _encoded(photo, "JPEG")],
        "gif": [_encoded(photo.convert("P"), "GIF", save_all=True, append_images=[photo.convert("P")])],
        "bmp": [_encoded(photo, "BMP")],
        "webp": [_encoded(photo, "WEBP")],
        "tif": [_encoded(photo, "TIFF", exif=exif), _encoded(photo, "TIFF", compression="tiff_lzw")],
        "ppm": [_encoded(photo, "PPM")],
    }

    def read_picture(path: Path) -> None:
        image_size(path)
        read_image(path)

    for suffix, contents in seeds.items():
        yield Target(f"image {suffix}", "binary", contents, _file_reader(folder / f"image.{suffix}", read_picture))
    labels = np.zeros(SIZE, np.uint8)
    labels[3:9, 4:20], labels[20:] = 2, 255
    write_label_map(folder / "labels.png", labels)
    masks = [(folder / "labels.png").read_bytes(), _encoded(Image.fromarray(labels), "PNG")]
    path = folder / "mask.png"
    yield Target("ground truth", "binary", masks, _file_reader(path, lambda path: PngMask(path).read()))
    yield Target("saliency", "binary", masks, _file_reader(path, read_grey))
    read_known = _file_reader(path, lambda path: read_label_map(path, size=SIZE, num_classes=3))
    yield Target("mask of a run", "binary", masks, read_known, 2)
    yield Target("mask of any size", "binary", masks, _file_reader(path, read_label_map))
    maps = rng.random((2, 6, 8))
    for name, background in (("a", None), ("b", maps[0])):
        ResponseMaps(np.array([1, 3]), maps, SIZE, background).save(folder / f"{name}.safetensors")
    contents = [(folder / f"{name}.safetensors").read_bytes() for name in ("a", "b")]

    def read_maps(path: Path) -> None:
        for maps in (ResponseMaps.load(path), ResponseMaps.load(path, size=SIZE, num_classes=3)):
            maps.full_size()
            maps.label_map(0.3)

    yield Target("maps", "binary", contents, _file_reader(folder / "maps.safetensors", read_maps), 3)
    yield Target("maps header", "json", contents, _file_reader(folder / "maps.safetensors", read_maps), 2)


def _recipe_targets(folder: Path) -> Iterator[Target]:
    recipes = [recipe_text(name).encode() for name in recipe_names()]
    recipes += [load_recipe(name).to_yaml().encode() for name in ("small", "irn")]

    def read_recipe(path: Path) -> None:
        load_recipe(str(path)).to_yaml()

    yield Target("recipe", "yaml", recipes, _file_reader(folder / "recipe.yaml", read_recipe), 3)
    settings = [
        b"cam.epochs=3", b"seed=1", b"cam.scales=[1.0, 0.5]", b"pseudo_masks.crf.steps=3", b"cam.options={a: {b: 1}}",
        b"segment.architecture=Unet", b"pseudo_masks.threshold=per-image", b"cam.long_side_range=[320, 640]",
        b"segment.inputs={masks: pseudo_masks}", b"cam.backbone=resnet18", b"segment.crf=null",
    ]  # fmt: skip

    def change(content: bytes) -> None:
        load_recipe("small", [content.decode("utf-8", "surrogateescape")]).to_yaml()

    yield Target("--set", "yaml", settings, change, 5)


def _evaluation() -> Evaluation:
    target = np.zeros(SIZE, np.uint8)
    target[3:9] = 1
    masks, curve = SegmentationMetric(len(CLASSES) + 1), ThresholdCurveMetric(len(CLASSES) + 1)
    masks.update(target, target)
    curve.update(np.ones((1, *SIZE), np.float32) / 2, [1], target)
    maps = MapScores(curve.compute(), 0.4, ActivationStats(float("inf"), 0.5, 0.25))
    return Evaluation(
        CLASSES, {"cam (x)": maps}, {"segment (x)": masks.compute()}, {"cam (x)": 0.4}, {"maps of cam (x)": "abc"}
    )


def _run_targets(folder: Path) -> Iterator[Target]:
    """Yield every file of a run folder, each with what reads it."""
    run, stage = RunFolder(folder), StageFolder(folder / "cam")
    samples = tuple(Sample(str(i), f"{i}.png", (1,), size=SIZE) for i in range(2))
    images, recipe = TaggedImages(CLASSES, samples), load_recipe("cam")
    run.write_record(RunSources(images=DataSource(root="photos", classes=CLASSES)), CLASSES, "abc")
    run.recipe_path.write_text(recipe.to_yaml())
    write_json(run.evaluation_path, _evaluation().to_json())
    key = {"method": "x", "settings": {"a": 1}, "seed": 0, "images": "abc", "inputs": {}}
    write_json(
        stage.record_path, {"status": "done", "key": key, "versions": {"torch": "2"}, "seconds": 3.5, "num_images": 2}
    )
    write_json(stage.threshold_path, {"threshold": 0.4, "per_image": False})
    write_json(stage.history_path, [{"epoch": i, "loss": 0.5, "lr": 0.1, "seconds": 1.5} for i in (1, 2)])
    recommended = Recommendation(stage="cam", reason="its masks are the only ones", keys={"cam": "abc"})
    write_json(run.recommendation_path, recommended.model_dump(mode="json"))
    write_verified(run.verification_cache_path, {"abc": (24, 30, None), "def": (24, 30, 123)})
    remember_files(run, {"cam": ("maps",)}, images)
    opened = tagmask.Run(folder, DataSource(root="photos"))
    summary_html(opened)

    def read_evaluation(path: Path) -> None:
        Evaluation.read(path).to_json()
        summary_html(opened)

    def check_stage(path: Path) -> None:
        stage.is_done  # noqa: B018
        discard_damaged_files(stage, ("maps",), images, Reporter().progress)

    readers: Mapping[Path, tuple[Callable[[Path], object], float]] = {
        run.record_path: (lambda path: tagmask.load(folder).classes, 2),
        run.recipe_path: (lambda path: tagmask.load(folder).recipe, 1),
        run.evaluation_path: (read_evaluation, 3),
        run.verification_cache_path: (read_verified, 1),
        run.file_cache_path: (lambda path: files_are_as_remembered(run, ["cam"], images), 1),
        run.recommendation_path: (lambda path: Recommendation.read_if_any(run), 1),
        stage.record_path: (check_stage, 2),
        stage.threshold_path: (lambda path: stage.read_threshold_if_any(), 1),
        stage.history_path: (lambda path: read_history(stage), 1),
    }
    for path, (read, weight) in readers.items():
        valid = path.read_bytes()
        restored = _restoring(path, valid, _file_reader(path, read))
        yield Target(path.name, "yaml" if path.suffix == ".yaml" else "json", [valid], restored, weight)
    torch.manual_seed(0)
    networks = {
        "classifier": Classifier(Backbone("test_resnet"), CLASSES),
        "segmenter": Segmenter("Unet", "test_resnet", CLASSES),
    }
    for name, network in networks.items():
        network.save(folder / name, test={"scales": [1.0], "crf": {"steps": 2}})
        load: Callable[[Path], object] = lambda path: Classifier.load(path.parent)  # noqa: E731
        if name == "segmenter":
            load = lambda path: Predictor.load(path.parent, Compute())  # noqa: E731
        for path in sorted((folder / name).iterdir()):
            valid = path.read_bytes()
            restored = _restoring(path, valid, _file_reader(path, load))
            yield Target(f"{name}: {path.name}", "json" if path.suffix == ".json" else "binary", [valid], restored, 0.3)


def _restoring(path: Path, valid: bytes, read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Return a reader that puts the valid file back, so that other targets find it."""

    def read_and_restore(content: bytes) -> object:
        try:
            return read(content)
        finally:
            path.write_bytes(valid)

    return read_and_restore
