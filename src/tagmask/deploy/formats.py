"""The formats of `tagmask export` that write the network of a run, not its masks."""

from __future__ import annotations

NETWORK_FORMATS = {
    "onnx": "one ONNX file, which onnxruntime and many other programs run without PyTorch",
    "hub": "a folder for Hugging Face Hub, with model card, weights and ONNX file",
}
