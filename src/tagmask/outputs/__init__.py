"""Masks for other programs and for viewing: indexed PNG files, COCO JSON, overlays."""
