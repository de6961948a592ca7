"""Masks for other programs and for the eye: COCO JSON, overlays, folders of indexed PNGs."""
