"""Regions: masks whose outlines are those of class-agnostic regions of the image, which a vote gives to the classes.

Chen, Mai, Li and Chao, "Segment Anything Model (SAM) Enhanced Pseudo Labels for Weakly Supervised Semantic
Segmentation", arXiv 2305.05803 (SEPL), with regions of classical methods, of SAM, or of a folder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from joblib import delayed
from pydantic import Field, PositiveFloat, model_validator

from tagmask.data.region_files import read_regions, region_files_fingerprint, write_regions
from tagmask.data.samples import Sample, TaggedImages
from tagmask.label_map import write_label_map
from tagmask.large_images import reduced_size, resize_labels
from tagmask.maps import ResponseMaps
from tagmask.methods._threshold import GlobalThreshold, record_threshold
from tagmask.refine.dense_crf import compile_crf_kernels
from tagmask.refine.map_cutting import cut_maps, refine_labels
from tagmask.refine.regions import RegionLayers, felzenszwalb_regions, slic_regions, vote
from tagmask.refine.settings import CrfSettings
from tagmask.stage import ArtifactKind, MakeFiles, Method, StageContext

if TYPE_CHECKING:
    from tagmask.models.region_generator import RegionGenerator


class Regions(Method):
    """Cut response maps at a threshold, and let each class take the regions of the image in which it prevails."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("masks",)

    threshold: GlobalThreshold = Field(
        "auto",
        description="activation from 0 to 1 above which a pixel belongs to a class; auto: Otsu's threshold over all "
        "maps of the run",
    )
    source: Literal["felzenszwalb", "slic", "sam", "folder"] = Field(
        "felzenszwalb",
        description="where the regions come from: felzenszwalb (Felzenszwalb and Huttenlocher, IJCV 2004), slic "
        "(superpixels), sam (Segment Anything), or folder (files of your own)",
    )
    region_sizes: tuple[PositiveFloat, ...] = Field(
        (100.0,),
        min_length=1,
        description="felzenszwalb: its scale; slic: the mean area of a superpixel in pixels. Several numbers give "
        "regions of several sizes, which overlap",
    )
    folder: Path | None = Field(
        None,
        description="if source is folder: the folder with the regions of each image, <id>.png with the number of each "
        "pixel's region, or <id>/*.png with one mask for each region",
    )
    sam: str = Field(
        "facebook/sam2.1-hiera-small",
        description="if source is sam: a model of SAM, SAM-HQ, SAM 2, EdgeTAM or SAM 3 for transformers, on the "
        "Hugging Face Hub (owner/name) or in a local folder",
    )
    points_per_side: int = Field(
        32, ge=1, le=256, description="if source is sam: a grid of so many points per side prompts it"
    )
    inference_batch_size: int = Field(
        64, ge=1, description="if source is sam: the number of points that it segments at once"
    )
    refine: Literal["before", "after", "none"] = Field(
        "before", description="the dense CRF: before the vote, after it, or none"
    )
    crf: CrfSettings = Field(CrfSettings(), description="settings of the dense CRF")
    gt_prob: float = Field(
        0.7, gt=0, lt=1, description="probability that a label of the cut maps is right, as the CRF assumes"
    )

    @model_validator(mode="after")
    def _folder_fits_source(self) -> Self:
        if (self.source == "folder") != (self.folder is not None):
            raise ValueError("source folder needs folder, the path of the regions, and no other source has it")
        return self

    def extra_fingerprint(self, images: TaggedImages) -> str | None:
        return region_files_fingerprint(self.folder, images) if self.folder else None

    def run(self, context: StageContext) -> None:
        threshold = record_threshold(context, self.threshold, context.inputs["maps"])
        context.make_files("masks", partial(self.prepare_masks, threshold))

    def prepare_masks(self, threshold: float, context: StageContext) -> MakeFiles:
        """Return the function that makes the masks; SAM is loaded when the first regions are needed."""
        return partial(self._write_missing_masks, threshold, cache(partial(self._load_sam, context)))

    def _write_missing_masks(
        self, threshold: float, load_sam: Callable[[], RegionGenerator], context: StageContext
    ) -> None:
        method = self._with_regions_of_sam(context, load_sam) if self.source == "sam" else self
        groups = context.pending_shard([[sample] for sample in context.images.samples], context.folder.mask_path)
        if groups and self.refine != "none":
            compile_crf_kernels(context.reporter.info)
        write = partial(method._write_mask, threshold=threshold)
        jobs = (
            delayed(write)(context.folder.mask_path(sample.id), context.inputs["maps"].maps_path(sample.id), sample)
            for (sample,) in groups
        )
        context.run_in_workers("masks of regions", jobs, len(groups))

    def _load_sam(self, context: StageContext) -> RegionGenerator:
        from tagmask.models.region_generator import RegionGenerator  # here: workers that vote need no PyTorch
        from tagmask.models.weights_license import report_restriction, restriction_of_hub_model

        context.reporter.info(f"  loading {self.sam}; the first time it is downloaded, unless it is a local folder")
        generate = RegionGenerator(self.sam, self.points_per_side, self.inference_batch_size, context.compute.device)
        restriction = restriction_of_hub_model(self.sam, generate.model_type)
        report_restriction(restriction, context.folder.path, context.compute, context.reporter)
        return generate

    def _with_regions_of_sam(self, context: StageContext, load_sam: Callable[[], RegionGenerator]) -> Regions:
        """Write the regions of each image that has none yet to `regions/<id>.png`, and return a method that reads them.

        An image without tags needs none, nor does one with a reviewed mask. A large image is reduced.
        """
        folder = context.folder.path / "regions"
        needed = [[s] for s in context.images.samples if s.tags and s.reviewed_mask is None]
        groups = context.pending_shard(needed, lambda image_id: folder / f"{image_id}.png")
        if groups:
            from tagmask.data.loading import load_image_batches  # here: workers that vote need no PyTorch

            generate = load_sam()
            with context.reporter.progress("regions of SAM", len(groups)) as advance:
                for (sample,), pixels in load_image_batches(groups, context.compute):
                    write_regions(folder / f"{sample.id}.png", generate(pixels[0].permute(1, 2, 0).numpy()))
                    advance(1)
        context.compute.barrier()
        return self.model_copy(update={"source": "folder", "folder": folder})

    def _write_mask(self, mask_path: Path, maps_path: Path, sample: Sample, threshold: float) -> None:
        maps = ResponseMaps.load(maps_path)
        reduced = maps.resized(reduced_size(maps.size))
        labels = self.label_map(sample, sample.read_reduced_image(), reduced, threshold)
        write_label_map(mask_path, resize_labels(labels, maps.size))

    def label_map(self, sample: Sample, image: np.ndarray, maps: ResponseMaps, threshold: float) -> np.ndarray:
        """Make the label map of one image.

        Args:
            sample: the image.
            image: its pixels [H, W, 3] uint8, RGB.
            maps: its response maps.
            threshold: where to cut them.

        Returns:
            [H, W] uint8: 0 background, class ids.
        """
        labels = cut_maps(image, maps, threshold, self.crf if self.refine == "before" else None, self.gt_prob)
        if not len(maps.classes):
            return labels
        labels = vote(labels, self.regions(sample, image))
        if self.refine == "after":
            labels = refine_labels(image, labels, maps.classes, self.crf, self.gt_prob)
        return labels

    def regions(self, sample: Sample, image: np.ndarray) -> RegionLayers:
        """Return the regions [L, H, W] of an image [H, W, 3] uint8."""
        if self.folder:
            return read_regions(self.folder, sample.id, (image.shape[0], image.shape[1]))
        make = felzenszwalb_regions if self.source == "felzenszwalb" else slic_regions
        return make(image, self.region_sizes)
