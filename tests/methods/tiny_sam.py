"""Tiny randomly initialized models of SAM in the layout of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPTokenizer,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    Sam3Processor,
    SamConfig,
    SamImageProcessor,
    SamModel,
)


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


def write_sam3(folder: Path) -> Path:
    """Write a `Sam3Model` of 170,000 parameters and its processor, whose tokens are letters.

    What it finds, and how sure it is, depends on the image and the words.
    """
    torch.manual_seed(5)
    part = {"hidden_size": 32, "num_attention_heads": 2}
    layers = {**part, "num_layers": 1, "intermediate_size": 32}
    config = Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model", **part, "num_hidden_layers": 1, "intermediate_size": 32,
                "image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [0],
                "pretrain_image_size": 56,
            },
            "fpn_hidden_size": 32, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            **part, "vocab_size": 60, "num_hidden_layers": 1, "intermediate_size": 32, "projection_dim": 16,
            "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        },
        geometry_encoder_config={**layers, "roi_size": 2},
        detr_encoder_config=layers,
        detr_decoder_config={**layers, "num_queries": 5},
        mask_decoder_config={**part, "num_upsampling_stages": 2},
    )  # fmt: skip
    model = Sam3Model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=3 if "query" in name or "reference" in name else 0.3)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
    image_processor = Sam3ImageProcessor(size={"height": 56, "width": 56}, mask_size={"height": 16, "width": 16})
    Sam3Processor(image_processor, tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
