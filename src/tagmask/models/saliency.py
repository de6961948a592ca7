"""Models that make saliency maps: TokenCut on any timm network, and the networks of rembg."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tagmask.compute import Compute
from tagmask.data.transforms import normalize_images
from tagmask.errors import RecipeError
from tagmask.models.backbone import Backbone, first_line
from tagmask.models.inference import prepare_for_inference_inplace, scaled
from tagmask.refine.map_cutting import refine_labels
from tagmask.refine.settings import CrfSettings
from tagmask.refine.tokencut import TAU, cut_tokens
from tagmask.text import did_you_mean, shorten

SaliencyModel = Callable[[np.ndarray], np.ndarray]
"""A function from an image [H, W, 3] uint8 to its saliency map [H, W] float32 in 0..1."""

MAX_TOKENS = 1600  # the time of the normalized cut grows with their third power; TokenCut's images have 400 or 1600
REMBG_MODELS = (
    "birefnet-general-lite", "birefnet-general", "birefnet-dis", "birefnet-hrsod", "birefnet-massive",
    "isnet-general-use", "u2net", "u2netp", "silueta",
)  # fmt: skip
"""Models of rembg that find the salient object of any photograph, on this machine."""


class TokenCut:
    """The foreground that `tagmask.refine.tokencut` finds in the last features of a backbone.

    The paper's tokens are the keys of the last attention of DINO. The features of a CNN are often not negative, so that
    all of them are alike: the mean over the image is subtracted first, without which the background was foreground
    (docs/guides/saliency.md).

    Args:
        backbone: a ViT or a CNN; it is prepared for inference in place.
        compute: its `device` is where the backbone runs.
        tau: the cosine similarity above which two tokens are alike.
        crf: settings of the dense CRF that refines the foreground; None: it is enlarged bilinearly.
    """

    def __init__(self, backbone: Backbone, compute: Compute, tau: float = TAU, crf: CrfSettings | None = None) -> None:
        self.backbone, self.device = prepare_for_inference_inplace(backbone, compute), compute.device
        self.is_cnn = backbone.side_multiple == 1
        self.cell = backbone.config["output_stride"] if self.is_cnn else backbone.side_multiple
        self.tau, self.crf = tau, crf

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(self.device)
        normalized = normalize_images(pixels, self.backbone.mean, self.backbone.std)
        features = self.backbone(scaled(normalized, min(1, self.cell * (MAX_TOKENS / (height * width)) ** 0.5)))[0]
        tokens = features.flatten(1).T.double().cpu().numpy()
        foreground = cut_tokens(tokens - tokens.mean(0) if self.is_cnn else tokens, self.tau)
        cells = torch.from_numpy(foreground.reshape(features.shape[1:]))[None, None].float()
        saliency = F.interpolate(cells, (height, width), mode="bilinear")[0, 0].numpy()
        if self.crf is None:
            return saliency
        labels = refine_labels(image, (saliency > 0.5).astype(np.uint8), np.array([1]), self.crf)
        return labels.astype(np.float32)


class Rembg:
    """The masks of a network of the library rembg. These networks have learned from masks that people drew.

    Args:
        name: one of `REMBG_MODELS`, which rembg downloads the first time.

    Raises:
        RecipeError: rembg is not installed, or the model cannot be used or downloaded.
    """

    def __init__(self, name: str) -> None:
        check_rembg_model(name)
        if find_spec("rembg") is None or find_spec("onnxruntime") is None:
            raise RecipeError('saliency maps of rembg need more packages: pip install "tagmask[rembg]".')
        import rembg

        try:
            self.session = rembg.new_session(name)
        except Exception as error:  # the type depends on what is wrong
            raise RecipeError(
                f"rembg could not load its model {name!r} ({first_line(error)}); connect to the network, or download "
                "the model on another machine with `rembg d MODEL` and copy its folder ~/.u2net."
            ) from error

    def __call__(self, image: np.ndarray) -> np.ndarray:
        [mask] = self.session.predict(Image.fromarray(image))
        return np.asarray(mask.convert("L"), np.float32) / 255


def load_saliency_model(
    name: str, compute: Compute, weights: str = "pretrained", tau: float = TAU, *, crf: bool = False
) -> SaliencyModel:
    """Load a model that makes saliency maps.

    Args:
        name: "rembg:<model>" or "tokencut:<timm model>".
        compute: where TokenCut runs. rembg chooses its device itself.
        weights: of TokenCut's backbone, see `Backbone`.
        tau: of TokenCut.
        crf: whether the dense CRF refines TokenCut's foreground.

    Raises:
        RecipeError: there is no such model, or it cannot be loaded.
    """
    kind, _, model = name.partition(":")
    if kind == "rembg":
        return Rembg(model)
    if kind != "tokencut" or not model:
        raise RecipeError(f"{shorten(name)!r} makes no saliency maps: give rembg:<model> or tokencut:<timm model>.")
    return TokenCut(Backbone(model, weights), compute, tau, CrfSettings() if crf else None)


def check_rembg_model(name: str) -> None:
    """Raise RecipeError if this model of rembg does not make saliency maps, or its license forbids most uses."""
    if name == "bria-rmbg":
        raise RecipeError(
            "the license of bria-rmbg permits non-commercial use only: take another model, e.g. "
            "rembg:birefnet-general-lite."
        )
    if name not in REMBG_MODELS:
        raise RecipeError(f"{shorten(name)!r} is no model of rembg for saliency maps{did_you_mean(name, REMBG_MODELS)}")
