"""Pseudo-masks: cut response maps at a threshold and refine the masks with the dense CRF.

The threshold is a number, Otsu's (chosen without ground truth), or one per image near Otsu's (our own rule; its cues
are described in `tagmask.refine.image_threshold`). Dense CRF: Krähenbühl and Koltun, NIPS 2011.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from joblib import delayed
from pydantic import Field, model_validator

from tagmask.data.loading import load_image_batches
from tagmask.data.saliency import read_and_resize_saliency, saliency_fingerprint
from tagmask.data.samples import Sample, TaggedImages
from tagmask.label_map import write_label_map
from tagmask.large_images import reduced_size, resize_labels
from tagmask.maps import ResponseMaps
from tagmask.methods._settings import InferenceSettings, Scales
from tagmask.methods._threshold import Threshold, record_threshold
from tagmask.methods.segment import predict_pending_images
from tagmask.models.boundary_network import BoundaryNetwork, predict_image_boundaries
from tagmask.models.inference import prepare_for_inference_inplace
from tagmask.models.segmenter import Segmenter
from tagmask.refine.dense_crf import compile_crf_kernels
from tagmask.refine.image_threshold import choose_threshold, expected_threshold, mean_root_num_tags
from tagmask.refine.map_cutting import confident_seeds, cut_maps, cut_maps_by_power, threshold_of_power
from tagmask.refine.settings import CrfSettings, SeedSettings
from tagmask.stage import ArtifactKind, MakeFiles, StageContext


@dataclass(frozen=True)
class View:
    """What networks have computed of an image before its mask is made.

    Attributes:
        image: [H, W, 3] uint8, RGB, a large image at its reduced size; None: it is not read yet.
        foreground: [H, W] float, 0..1, how likely a pixel is foreground.
        boundary: [ceil(H / 4), ceil(W / 4)] float, 0..1, how likely a cell lies on a boundary.
    """

    image: np.ndarray | None = None
    foreground: np.ndarray | None = None
    boundary: np.ndarray | None = None


class PseudoMasks(InferenceSettings):
    """Make a label map of each image from its response maps, whatever method made them.

    The label map of a large image is made from a reduced one (`tagmask.large_images`), and is then enlarged.
    """

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("masks",)

    threshold: Threshold = Field(
        "auto",
        description="activation from 0 to 1 above which a pixel belongs to a class; auto: Otsu's threshold over all "
        "maps of the run; per-image: one threshold per image near Otsu's (takes about four times as long as the CRF)",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        description="instead of a threshold: exponent α of the background (1 − strongest activation)^α, and the CRF "
        "takes the activations as probabilities (psa's code: 16 before its random walk)",
    )
    margin: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="pixels are ignored (255) if they are background at threshold + margin, but not at threshold − "
        "margin; 0: no ignored pixels",
    )
    refine: Literal["crf", "none"] = Field(
        "crf", description="crf: refine the masks with the dense CRF; none: cut the maps and change nothing"
    )
    crf: CrfSettings = Field(CrfSettings(), description="settings of the dense CRF")
    gt_prob: float = Field(
        0.7, gt=0, lt=1, description="probability that a label of the cut maps is right, as the CRF assumes"
    )
    color_weight: float = Field(
        0.0,
        ge=0,
        description="above 0: the CRF is computed a second time, with the colors that each class and the background "
        "have in the image where the first time changed nothing; this is the weight of the colors",
    )
    cue: Literal["none", "saliency", "network"] = Field(
        "saliency",
        description="what helps to choose a threshold per image: saliency (the saliency map of the image, if it has "
        "one), network (the segmentation network of an earlier stage), or none",
    )
    edges: Literal["image", "boundaries"] = Field(
        "image",
        description="where the outlines should lie for a threshold per image: image (on its edges) or boundaries (also "
        "on those that the network of an earlier stage irn has learned)",
    )
    scales: Scales = Field(
        (1.0,), description="if cue is network: factors by which an image is resized for the network"
    )
    inference_batch_size: int = Field(
        8, ge=1, description="if cue is network: largest number of images of equal size in a batch"
    )

    def required_inputs(self) -> tuple[ArtifactKind, ...]:
        network: tuple[ArtifactKind, ...] = ("segmenter",) if self._uses_network else ()
        return ("maps", *network, "boundary") if self._uses_boundaries else ("maps", *network)

    def extra_fingerprint(self, images: TaggedImages) -> str | None:
        return saliency_fingerprint(images) if self._uses_saliency else None

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.alpha is not None and (self.threshold != "auto" or self.margin):
            raise ValueError("alpha takes the place of threshold and margin: leave these out, or alpha")
        if self.color_weight and (self.refine == "none" or self.alpha is not None or self.margin):
            raise ValueError("color_weight needs the CRF, without alpha and margin: leave it out, or these")
        return self

    @property
    def _uses_saliency(self) -> bool:
        return self.threshold == "per-image" and self.cue == "saliency"

    @property
    def _uses_network(self) -> bool:
        return self.threshold == "per-image" and self.cue == "network"

    @property
    def _uses_boundaries(self) -> bool:
        return self.threshold == "per-image" and self.edges == "boundaries"

    @property
    def _crf(self) -> CrfSettings | None:
        return self.crf if self.refine == "crf" else None

    def run(self, context: StageContext) -> None:
        setting = self.threshold if self.alpha is None else threshold_of_power(self.alpha)
        threshold = record_threshold(context, setting, context.inputs["maps"])
        if self.threshold == "per-image" and (cues := self.describe_cues(context.images)):
            context.reporter.info(f"  {cues}")
        typical = mean_root_num_tags(sample.tags for sample in context.images.samples)
        context.make_files("masks", partial(self.prepare_masks, threshold, typical))

    def describe_cues(self, images: TaggedImages) -> str | None:
        """Return one line about what helps to choose the thresholds of the tagged images; None if nothing does."""
        tagged = [sample for sample in images.samples if sample.tags]
        salient = sum(bool(sample.saliency) for sample in tagged)
        if self._uses_network:
            unused = "; the saliency maps of the images are not used" if salient else ""
            return f"the network helps to choose the thresholds{unused}"
        if not self._uses_saliency:
            return None
        if not salient:
            return "no image has a saliency map, which would help to choose the thresholds"
        if salient == len(tagged):
            return "saliency maps help to choose the thresholds of all images"
        some = f"{salient:,} of {len(tagged):,} images; the others have none"
        return f"saliency maps help to choose the thresholds of {some}"

    def prepare_masks(self, threshold: float, typical: float, context: StageContext) -> MakeFiles:
        """Load the networks that are used, and return the function that makes the masks.

        Args:
            threshold: of the whole run.
            typical: see `mean_root_num_tags`.
            context: of the stage.
        """
        network = boundary_network = None
        if self._uses_network:
            network = prepare_for_inference_inplace(Segmenter.load(context.inputs["segmenter"].path), context.compute)
        if self._uses_boundaries:
            boundary_network = BoundaryNetwork.load(context.inputs["boundary"].path)
            boundary_network = prepare_for_inference_inplace(boundary_network, context.compute)
        return partial(self._write_missing_masks, threshold, typical, network, boundary_network)

    def _write_missing_masks(
        self,
        threshold: float,
        typical: float,
        network: Segmenter | None,
        boundary_network: BoundaryNetwork | None,
        context: StageContext,
    ) -> None:
        views, total = self._pending_views(context, network, reads_images=boundary_network is not None)
        if total and self._crf:
            compile_crf_kernels(context.reporter.info)

        def job(sample: Sample, view: View) -> Any:
            expected = threshold
            if self.threshold == "per-image":
                expected = expected_threshold(threshold, len(sample.tags or ()), typical)
            if boundary_network is not None and view.image is not None:
                boundary = predict_image_boundaries(boundary_network, view.image, context.compute)
                view = replace(view, boundary=boundary)
            maps_path = context.inputs["maps"].maps_path(sample.id)
            return delayed(self._write_mask)(context.folder.mask_path(sample.id), maps_path, sample, expected, view)

        context.run_in_workers("pseudo-masks", starmap(job, views), total)

    def _pending_views(
        self, context: StageContext, network: Segmenter | None, *, reads_images: bool
    ) -> tuple[Iterator[tuple[Sample, View]], int]:
        """Return the images without a mask with what this process has computed of them, and their number."""
        if network is not None:
            predictions, total = predict_pending_images(network, context, self.scales, self.inference_batch_size)
            return (
                (sample, View(image, 1 - probabilities[0])) for sample, image, _, probabilities in predictions
            ), total
        groups = context.pending_shard([[sample] for sample in context.images.samples], context.folder.mask_path)
        if not reads_images or not groups:
            return ((sample, View()) for (sample,) in groups), len(groups)
        loaded = load_image_batches(groups, context.compute)
        images = ((sample, pixels[0].permute(1, 2, 0).contiguous().numpy()) for (sample,), pixels in loaded)
        return ((sample, View(image)) for sample, image in images), len(groups)

    def _write_mask(
        self,
        mask_path: Path,
        maps_path: Path,
        sample: Sample,
        threshold: float,
        view: View,
    ) -> None:
        image = sample.read_reduced_image() if view.image is None else view.image
        maps = ResponseMaps.load(maps_path)
        reduced = maps.resized(reduced_size(maps.size))
        foreground = view.foreground
        if self._uses_saliency and sample.saliency and len(maps.classes):
            foreground = read_and_resize_saliency(sample.saliency, reduced.size)
        labels = self.label_map(image, reduced, threshold, foreground, view.boundary)
        write_label_map(mask_path, resize_labels(labels, maps.size))

    def label_map(
        self,
        image: np.ndarray,
        maps: ResponseMaps,
        threshold: float,
        foreground: np.ndarray | None = None,
        boundary: np.ndarray | None = None,
    ) -> np.ndarray:
        """Make the label map of one image.

        Args:
            image: [H, W, 3] uint8, RGB.
            maps: its response maps.
            threshold: where to cut them; with a threshold per image, the expected one.
            foreground: [H, W] float, 0..1, a cue for the threshold per image: how likely a pixel is foreground.
            boundary: [ceil(H / 4), ceil(W / 4)] float, 0..1, another one: how likely a cell lies on a boundary.

        Returns:
            [H, W] uint8: 0 background, class ids, 255 ignored.
        """
        if self.threshold == "per-image" and len(maps.classes):
            choice = choose_threshold(
                image, maps, threshold, self._crf, self.gt_prob, foreground=foreground, boundary=boundary
            )
            if not self.margin and not self.color_weight:
                return choice.labels
            threshold = choice.threshold
        if self.alpha is not None:
            return cut_maps_by_power(image, maps, self.alpha, self._crf)
        if not self.margin:
            return cut_maps(image, maps, threshold, self._crf, self.gt_prob, self.color_weight)
        fg, bg = min(1, threshold + self.margin), max(0, threshold - self.margin)
        return confident_seeds(image, maps, SeedSettings(fg=fg, bg=bg, gt_prob=self.gt_prob, crf=self._crf))
