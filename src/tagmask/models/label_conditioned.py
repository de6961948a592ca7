"""AMN's network: per-pixel logits of features that the image's tags were multiplied into."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from tagmask.errors import RunError
from tagmask.models.backbone import Backbone
from tagmask.models.saved_network import read_weights, write_weights
from tagmask.models.segmenter import DilatedHead

FILE = "label_conditioned.safetensors"


class LabelConditioned(nn.Module):
    """Images [B, 3, H, W] and their tags [B, K] → logits [B, K + 1, h, w], background first.

    e = Linear(K → D)(tags); the head of four dilations sees dropout(f ⊙ e) (Lee, Kim and Shim, CVPR 2022).
    """

    def __init__(self, backbone: Backbone, classes: tuple[str, ...], dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, classes
        self.condition = nn.Linear(len(classes), backbone.channels)
        self.dropout = nn.Dropout(dropout)
        self.head = DilatedHead(backbone.channels, len(classes) + 1)

    def forward(self, images: Tensor, tags: Tensor) -> Tensor:
        conditioned = self.backbone(images) * self.condition(tags)[:, :, None, None]
        logits: Tensor = self.head(self.dropout(conditioned))
        return logits

    def new_parameters(self) -> list[nn.Parameter]:
        """Everything that is not the backbone's."""
        return [*self.condition.parameters(), *self.head.parameters()]

    def save(self, folder: Path) -> None:
        """Write label_conditioned.safetensors and config.json."""
        kind = {"kind": "label_conditioned", "classes": self.classes, "dropout": self.dropout.p}
        write_weights(folder / FILE, self.state_dict(), {**kind, "backbone": self.backbone.config})

    @classmethod
    def load(cls, folder: Path) -> LabelConditioned:
        """Load what `save` wrote. Raises RunError if it is not there."""
        weights, config = read_weights(folder / FILE)
        if config.get("kind") != "label_conditioned":
            raise RunError(f"{folder} does not hold a label-conditioned network but a {config.get('kind')}.")
        network = cls(Backbone(**config["backbone"]), tuple(config["classes"]), config["dropout"])
        network.load_state_dict(weights)
        return network.eval()
