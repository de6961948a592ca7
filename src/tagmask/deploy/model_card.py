"""The model card of a network: README.md on Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tagmask.deploy.trained_network import TrainedNetwork
from tagmask.errors import RunError
from tagmask.formatting import format_count, format_percent
from tagmask.models.segmenter import InferenceConfig
from tagmask.models.weights_license import license_of_weights
from tagmask.recipe import Recipe
from tagmask.text import pluralize
from tagmask.yaml_text import dump_yaml, parse_yaml

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
HUB_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "gemma", "unknown")
"""Identifiers of licenses that the hub and timm share. Of others, the hub wants `other` and a license_name."""


class BackboneLicense(NamedTuple):
    """The license of the weights with which the training of a backbone began.

    Attributes:
        name: as timm names it, e.g. "apache-2.0", or "unknown"; None if the training began with random weights.
        description: the same for readers.
        base_model: the repository of the weights on the hub, if it is known.
    """

    name: str | None
    description: str
    base_model: str | None = None


def backbone_license(source: str, backbone: str) -> BackboneLicense:
    """Return the license of the weights of a backbone.

    Args:
        source: "pretrained", "none" or the path of a weights file.
        backbone: a timm model name.
    """
    if source == "none":
        return BackboneLicense(None, "none, because the training began with random weights")
    if source != "pretrained":
        return BackboneLicense("unknown", f"unknown: weights file {Path(source).name}")
    name, repository = license_of_weights(backbone)
    where = f"[{repository}](https://huggingface.co/{repository})" if repository else f"timm's weights of {backbone}"
    if name is None:
        return BackboneLicense("unknown", f"unknown: timm does not give one for {where}", repository)
    return BackboneLicense(name, f"{name}, which timm gives for {where}", repository)


def model_card(network: TrainedNetwork, *, has_onnx: bool) -> ModelCard:
    """Return the model card of a network.

    Args:
        network: the network.
        has_onnx: whether the folder of the card contains model.onnx.

    Raises:
        RunError: a file of the stage is missing or damaged.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    config, record, scores = network.read_config(), network.stage.read_record_if_any(), network.scores()
    if config.test is None or record is None:
        raise RunError(f"{network.stage.path} is not finished: run the command of the run again first.")
    license = backbone_license(network.initial_weights(), config.network.backbone)
    title = f"{config.network.architecture} ({config.network.backbone}), {pluralize(len(config.classes), 'class')}"
    has_own_name = license.name is not None and license.name not in HUB_LICENSES
    results = [
        EvalResult("image-segmentation", "custom", name, "mean_iou", round(100 * report.miou, 2), metric_name="mIoU")
        for name, report in scores.items()
        if name.startswith("held-out")
    ]
    data = ModelCardData(
        library_name="tagmask",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "weakly-supervised", "image-level-tags", *(["onnx"] if has_onnx else [])],
        license="other" if has_own_name else license.name,
        license_name=license.name if has_own_name else None,
        base_model=license.base_model,
        model_name=title if results else None,
        eval_results=results or None,
    )
    classes = [_escape(name) for name in config.classes]
    rows = [["mIoU", *(format_percent(report.miou) for report in scores.values())]]
    for label, name in enumerate(["background", *classes]):
        rows.append([name, *(format_percent(report.iou[label]) for report in scores.values())])
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        num_images=format_count(record.num_images),
        has_onnx=has_onnx,
        extras=_extras(config.test),
        classes=classes,
        scores=[_escape(name) for name in scores],
        rows=rows,
        license=license.description,
        stage=network.stage.name,
        versions=", ".join(f"{name} {version}" for name, version in record.versions.items()),
        recipe=_recipe_without_paths(network.recipe),
    )


def _extras(inference: InferenceConfig) -> str:
    """Return what an exported ONNX file lacks of how the network is applied; empty if it lacks nothing."""
    extras = []
    if len(inference.scales) > 1 or inference.scales[0] != 1:
        extras.append("other scales")
    if inference.hflip:
        extras.append("horizontal flips")
    if inference.crf:
        extras.append("a dense CRF")
    return " and ".join([", ".join(extras[:-1]), extras[-1]] if len(extras) > 1 else extras)


def _recipe_without_paths(recipe: Recipe) -> str:
    """Return a recipe as YAML, with the names of weights files instead of their paths, which are nobody's business."""
    content = parse_yaml(recipe.to_yaml(), "the recipe")
    for settings in content["stages"].values():
        if "weights" in settings:
            settings["weights"] = Path(settings["weights"]).name
    return dump_yaml(content).strip()


def _escape(text: str) -> str:
    """Escape a text, so that Markdown shows it unchanged, also in a table."""
    return "".join(f"\\{character}" if character in "\\`*_[]<>#|" else character for character in text)
