"""Trained networks for use elsewhere: ONNX files, and folders for Hugging Face Hub."""
