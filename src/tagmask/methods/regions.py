"""Regions: masks whose outlines are those of class-agnostic regions of the image, which a vote gives to the classes.

Chen, Mai, Li and Chao, "Segment Anything Model (SAM) Enhanced Pseudo Labels for Weakly Supervised Semantic
Segmentation", arXiv 2305.05803 (SEPL), with regions of classical methods, of SAM, or of a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from joblib import delayed
from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from tagmask.data.region_files import read_regions, region_files_fingerprint, write_regions
from tagmask.data.samples import Sample, TaggedImages
from tagmask.label_map import read_label_map, write_label_map
from tagmask.large_images import reduced_size, resize_labels
from tagmask.maps import ResponseMaps
from tagmask.methods._threshold import GlobalThreshold, record_threshold
from tagmask.refine.dense_crf import compile_crf_kernels
from tagmask.refine.map_cutting import cut_maps, refine_labels
from tagmask.refine.regions import RegionLayers, boundary_regions, felzenszwalb_regions, slic_regions, vote
from tagmask.refine.settings import CrfSettings
from tagmask.stage import ArtifactKind, MakeFiles, Method, StageContext

if TYPE_CHECKING:
    from tagmask.models.boundary_network import BoundaryNetwork
    from tagmask.models.region_generator import RegionGenerator

BOUNDARY_BATCH_SIZE = 8  # images of equal size, as in `irn`


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Source = Literal["felzenszwalb", "slic", "sam", "folder", "boundaries"]


class Regions(Method):
    """Cut response maps, or read masks, and let each class take the regions of the image in which it prevails."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("masks",)

    vote_on: Literal["maps", "masks"] = Field(
        "maps",
        description="what the regions change: maps (response maps, cut at threshold) or masks (those of an earlier "
        "stage, without threshold and gt_prob)",
    )
    threshold: GlobalThreshold = Field(
        "auto",
        description="activation from 0 to 1 above which a pixel belongs to a class; auto: Otsu's threshold over all "
        "maps of the run",
    )
    source: Annotated[tuple[Source, ...], BeforeValidator(_as_list)] = Field(
        ("felzenszwalb",),
        min_length=1,
        description="where the regions come from, one or several: felzenszwalb (Felzenszwalb and Huttenlocher, IJCV "
        "2004), slic (superpixels), sam (Segment Anything), folder (files of your own), or boundaries (the basins "
        "between the boundaries that an earlier stage irn has learned)",
    )
    region_sizes: tuple[PositiveFloat, ...] = Field(
        (100.0,),
        min_length=1,
        description="felzenszwalb: its scale; slic: the mean area of a superpixel in pixels. Several numbers give "
        "regions of several sizes, which overlap",
    )
    boundary_depth: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="boundaries: a basin is a region of its own if the boundary to a deeper one is higher than its "
        "floor by more than this; a larger number gives larger regions",
    )
    folder: Path | None = Field(
        None,
        description="if source has folder: the folder with the regions of each image, <id>.png with the number of each "
        "pixel's region, or <id>/*.png with one mask for each region",
    )
    sam: str = Field(
        "facebook/sam2.1-hiera-small",
        description="if source has sam: a model of SAM, SAM-HQ, SAM 2, EdgeTAM or SAM 3 for transformers, on the "
        "Hugging Face Hub (owner/name) or in a local folder",
    )
    points_per_side: int = Field(
        32, ge=1, le=256, description="if source has sam: a grid of so many points per side prompts it"
    )
    inference_batch_size: int = Field(
        64, ge=1, description="if source has sam: the number of points that it segments at once"
    )
    refine: Literal["before", "after", "none"] = Field(
        "before", description="the dense CRF: before the vote (masks: none), after it, or none"
    )
    crf: CrfSettings = Field(CrfSettings(), description="settings of the dense CRF")
    gt_prob: float = Field(
        0.7, gt=0, lt=1, description="probability that a label of the cut maps is right, as the CRF assumes"
    )

    @model_validator(mode="after")
    def _folder_fits_source(self) -> Self:
        if ("folder" in self.source) != (self.folder is not None):
            raise ValueError("source folder needs folder, the path of the regions, and no other source has it")
        if "folder" in self.source and "sam" in self.source:
            raise ValueError("source cannot have both sam and folder: leave one of them out")
        return self

    def required_inputs(self) -> tuple[ArtifactKind, ...]:
        return (self.vote_on, "boundary") if "boundaries" in self.source else (self.vote_on,)

    def extra_fingerprint(self, images: TaggedImages) -> str | None:
        return region_files_fingerprint(self.folder, images) if self.folder else None

    def run(self, context: StageContext) -> None:
        threshold = None
        if self.vote_on == "maps":
            threshold = record_threshold(context, self.threshold, context.inputs["maps"])
        context.make_files("masks", partial(self.prepare_masks, threshold))

    def prepare_masks(self, threshold: float | None, context: StageContext) -> MakeFiles:
        """Return the function that makes the masks; networks are loaded when the first regions are needed."""
        load_sam, load_boundaries = cache(partial(self._load_sam, context)), cache(partial(_load_boundaries, context))
        return partial(self._write_missing_masks, threshold, load_sam, load_boundaries)

    def _write_missing_masks(
        self,
        threshold: float | None,
        load_sam: Callable[[], RegionGenerator],
        load_boundaries: Callable[[], BoundaryNetwork],
        context: StageContext,
    ) -> None:
        method = self._with_regions_of_sam(context, load_sam) if "sam" in self.source else self
        masks, source = context.folder, context.inputs[self.vote_on]
        source_path = source.maps_path if self.vote_on == "maps" else source.mask_path
        has_boundaries = "boundaries" in self.source
        groups = context.batches(BOUNDARY_BATCH_SIZE) if has_boundaries else [[s] for s in context.images.samples]
        batches = context.pending_shard(groups, masks.mask_path)
        total = sum(not masks.mask_path(sample.id).exists() for batch in batches for sample in batch)
        if total and (self.refine == "after" or (self.refine == "before" and self.vote_on == "maps")):
            compile_crf_kernels(context.reporter.info)

        def samples_with_boundaries() -> Iterator[tuple[Sample, np.ndarray | None]]:
            if not has_boundaries:
                yield from ((sample, None) for (sample,) in batches)
            elif batches:
                from tagmask.methods.irn import predict  # here: workers that vote need no PyTorch

                yield from ((sample, boundary) for sample, boundary, _ in predict(load_boundaries(), context, batches))

        write = partial(method._write_mask, threshold=threshold)
        jobs = (
            delayed(write)(masks.mask_path(sample.id), source_path(sample.id), sample, boundary)
            for sample, boundary in samples_with_boundaries()
            if not masks.mask_path(sample.id).exists()  # the others only complete a batch
        )
        context.run_in_workers("masks of regions", jobs, total)

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
        sources = tuple("folder" if source == "sam" else source for source in self.source)
        return self.model_copy(update={"source": sources, "folder": folder})

    def _write_mask(
        self, mask_path: Path, source_path: Path, sample: Sample, boundary: np.ndarray | None, threshold: float | None
    ) -> None:
        """Write the mask of an image from its maps, cut at the threshold, or without one from its mask."""
        image = sample.read_reduced_image()
        if threshold is None:
            labels = self.changed_labels(sample, image, read_label_map(source_path), boundary)
        else:
            maps = ResponseMaps.load(source_path)
            reduced = self.label_map(sample, image, maps.resized(reduced_size(maps.size)), threshold, boundary)
            labels = resize_labels(reduced, maps.size)
        write_label_map(mask_path, labels)

    def changed_labels(
        self, sample: Sample, image: np.ndarray, labels: np.ndarray, boundary: np.ndarray | None
    ) -> np.ndarray:
        """Return a label map [H, W] uint8 after the vote on its image, which is reduced if it is large."""
        size = (labels.shape[0], labels.shape[1])
        return resize_labels(self.voted(sample, image, resize_labels(labels, reduced_size(size)), boundary), size)

    def label_map(
        self,
        sample: Sample,
        image: np.ndarray,
        maps: ResponseMaps,
        threshold: float,
        boundary: np.ndarray | None = None,
    ) -> np.ndarray:
        """Make the label map of one image from its response maps.

        Args:
            sample: the image.
            image: its pixels [H, W, 3] uint8, RGB.
            maps: its response maps.
            threshold: where to cut them.
            boundary: see `regions`.

        Returns:
            [H, W] uint8: 0 background, class ids.
        """
        labels = cut_maps(image, maps, threshold, self.crf if self.refine == "before" else None, self.gt_prob)
        return self.voted(sample, image, labels, boundary)

    def voted(self, sample: Sample, image: np.ndarray, labels: np.ndarray, boundary: np.ndarray | None) -> np.ndarray:
        """Return labels [H, W] uint8 after the vote, and after the CRF if that comes last."""
        if not sample.tags:
            return labels
        labels = vote(labels, self.regions(sample, image, boundary))
        if self.refine == "after":
            labels = refine_labels(image, labels, np.array(sorted(sample.tags)), self.crf, self.gt_prob)
        return labels

    def regions(self, sample: Sample, image: np.ndarray, boundary: np.ndarray | None = None) -> RegionLayers:
        """Return the regions [L, H, W] of an image.

        Args:
            sample: the image.
            image: its pixels [H, W, 3] uint8, RGB.
            boundary: [ceil(H / 4), ceil(W / 4)] in 0..1, if the regions of boundaries are among the sources.
        """
        size = (image.shape[0], image.shape[1])
        layers = []
        for source in self.source:
            if source == "boundaries":
                assert boundary is not None
                layers.append(boundary_regions(boundary, size, self.boundary_depth))
            elif source == "felzenszwalb":
                layers.append(felzenszwalb_regions(image, self.region_sizes))
            elif source == "slic":
                layers.append(slic_regions(image, self.region_sizes))
            else:
                assert self.folder is not None
                layers.append(read_regions(self.folder, sample.id, size))
        return np.concatenate(layers)


def _load_boundaries(context: StageContext) -> BoundaryNetwork:
    from tagmask.models.boundary_network import BoundaryNetwork  # here: workers that vote need no PyTorch
    from tagmask.models.inference import prepare_for_inference_inplace

    return prepare_for_inference_inplace(BoundaryNetwork.load(context.inputs["boundary"].path), context.compute)
