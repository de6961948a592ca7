"""The attention of a vision transformer, averaged over its heads and last blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tagmask.errors import RecipeError
from tagmask.models.backbone import Backbone


class AttentionRecorder:
    """Computes features and attention of a timm ViT in one forward pass.

    Args:
        backbone: in eval mode; its last blocks compute their attention in steps from now on, which takes more memory.
        num_blocks: the number of the last blocks whose attention is averaged.

    Raises:
        RecipeError: the backbone has no attention between all cells, or fewer blocks.
    """

    def __init__(self, backbone: Backbone, num_blocks: int) -> None:
        self.backbone = backbone
        self._recorded: list[Tensor] = []  # of each block
        blocks: Any = getattr(backbone.net, "blocks", [])
        attentions: list[Any] = [getattr(block, "attn", None) for block in blocks]
        if not attentions or not all(hasattr(a, "fused_attn") and hasattr(a, "attn_drop") for a in attentions):
            raise RecipeError(
                f"backbone {backbone.config['name']!r} has no attention of all cells to all others, as a ViT has: set "
                "of to features, or choose a ViT."
            )
        if num_blocks > len(attentions):
            raise RecipeError(
                f"backbone {backbone.config['name']!r} has only {len(attentions)} blocks; set blocks to that or less."
            )
        for attention in attentions[-num_blocks:]:
            attention.fused_attn = False
            attention.attn_drop.register_forward_hook(self._record)

    def _record(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._recorded.append(output.float().mean(1))  # over the heads

    def __call__(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the attention of normalized images [B, 3, H, W].

        Returns:
            [B, N, N] float32, at least 0: row i is how much cell i attends to each other one. Tokens that are no
            cells are left out, so that the rows need not sum to 1. And the (h, w) of the grid, N = h · w.
        """
        self._recorded.clear()
        height, width = self.backbone(images).shape[2:]
        mean = torch.stack(self._recorded).mean(0)
        self._recorded.clear()
        first = mean.shape[1] - height * width
        return mean[:, first:, first:], (height, width)
