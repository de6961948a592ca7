"""SAM 3 as a finder of all objects that a word names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from tagmask.errors import RecipeError
from tagmask.models.hub_model import load_hub_model
from tagmask.refine.concepts import Instance

MODEL_TYPES = ("sam3", "sam3_video")  # a checkpoint for videos contains the model for images


class ConceptFinder:
    """SAM 3 (Carion et al., "SAM 3: Segment Anything with Concepts", arXiv 2511.16719) prompted with words.

    The score of an instance is σ(its logit) · σ(the logit that the concept is present in the image).

    Args:
        name: of a model that `transformers.Sam3Model` loads: on the Hugging Face Hub, or a local folder.
        prompts: the words for each class id.
        min_score: only instances with a higher score are returned.
        device: where SAM 3 runs, in float32.

    Raises:
        RecipeError: see `load_hub_model`; the model is not SAM 3; or a prompt is too long for it.
    """

    def __init__(self, name: str, prompts: Mapping[int, str], min_score: float, device: torch.device) -> None:
        self._model, self._processor = load_hub_model(name, "Sam3Model", "Sam3Processor", setting="sam", device=device)
        if (kind := self._model.config.model_type) not in MODEL_TYPES:  # transformers gives it random weights
            raise RecipeError(f"the model {name!r} is not SAM 3, but {kind!r}; give another as the setting sam.")
        self._prompts = {class_id: self._tokens(words) for class_id, words in prompts.items()}
        self._min_score, self._device = min_score, device

    def _tokens(self, words: str) -> Any:
        tokens = self._processor(text=words, return_tensors="pt")
        limit = self._model.text_encoder.config.max_position_embeddings
        if tokens["input_ids"].shape[1] > limit:
            raise RecipeError(f"the prompt {words!r} is too long for SAM 3 (more than {limit} tokens); shorten it.")
        return tokens

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, classes: Iterable[int]) -> list[Instance]:
        """Return what SAM 3 finds in an image.

        Args:
            image: [H, W, 3] uint8.
            classes: the ids of the classes that it is asked for; each has a prompt.

        Returns:
            The instances of all these classes, with masks [H, W].
        """
        pixels = self._processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
        features = self._model.get_vision_features(pixels.to(self._device))
        instances = []
        for class_id in classes:
            output = self._model(vision_embeds=features, **self._prompts[class_id].to(self._device))
            found = self._processor.post_process_instance_segmentation(
                output, threshold=self._min_score, target_sizes=[image.shape[:2]]
            )[0]
            for score, mask in zip(found["scores"].tolist(), found["masks"].bool().cpu().numpy(), strict=True):
                instances.append(Instance(class_id, score, mask))
        return instances
