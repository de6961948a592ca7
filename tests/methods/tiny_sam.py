"""Tiny randomly initialized models of SAM in the layout of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, SamConfig, SamImageProcessor, SamModel


def write_sam(folder: Path) -> Path:
    """Write a `SamModel` of 17,000 parameters."""
    torch.manual_seed(3)
    config = SamConfig(
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
            "window_size": 4, "global_attn_indexes": [0], "mlp_dim": 32, "output_channels": 16, "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    mask_size = {"height": 32, "width": 32}
    SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 32},
        mask_pad_size=mask_size,
    ).save_pretrained(folder)  # fmt: skip
    return _save_with_certain_masks(SamModel(config), folder)


def write_sam2(folder: Path) -> Path:
    """Write a `Sam2Model` of 94,000 parameters."""
    torch.manual_seed(0)
    config = Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1,
                "image_size": [64, 64], "blocks_per_stage": [1, 1, 1, 1], "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 1, 1], "global_attention_blocks": [],
                "window_size_per_stage": [4, 4, 4, 2], "window_positional_embedding_background_size": [2, 2],
            },
            "backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    size = {"height": 64, "width": 64}
    Sam2ImageProcessor(size=size, mask_size={"height": 16, "width": 16}).save_pretrained(folder)
    return _save_with_certain_masks(Sam2Model(config), folder)


def _save_with_certain_masks(model: torch.nn.Module, folder: Path) -> Path:
    """Save a model after its decoder got weights that make different masks, with large logits and a high score."""
    decoder = model.mask_decoder
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.5)
        decoder.iou_prediction_head.proj_out.weight.mul_(0.01)
        decoder.iou_prediction_head.proj_out.bias.fill_(5)
        for network in decoder.output_hypernetworks_mlps:
            network.proj_out.weight.mul_(1e4)
            network.proj_out.bias.mul_(1e4)
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder
