"""The licenses of pretrained weights, as timm knows them."""

from __future__ import annotations

import timm

PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
"""Licenses that allow every use of the weights, and of networks that are trained from them."""


def license_of_weights(backbone: str) -> tuple[str | None, str | None]:
    """Return the license of timm's pretrained weights, e.g. "apache-2.0", and their repository on the hub.

    Each is None if timm does not know it.

    Args:
        backbone: a timm model name.
    """
    config = timm.models.get_pretrained_cfg(backbone)
    if config is None:
        return None, None
    return None if config.license == "unknown" else config.license, config.hf_hub_id


def restriction_of_weights(backbone: str) -> str | None:
    """Return a sentence about the license of timm's pretrained weights, or None if it allows every use.

    Args:
        backbone: a timm model name.
    """
    name, repository = license_of_weights(backbone)
    if name in PERMISSIVE:
        return None
    where = f" at https://huggingface.co/{repository}" if repository else ""
    if name is None:
        return f"timm gives no license for the weights of {backbone}: find out{where} what they may be used for."
    return (
        f"the weights of {backbone} are under the license {name!r}, and so may be every network that is trained from "
        f"them: read it{where} before you use or pass on this run."
    )
