"""The licenses of pretrained weights, as timm and the Hugging Face Hub know them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import timm

from tagmask.artifacts import write_text

if TYPE_CHECKING:
    from tagmask.compute import Processes
    from tagmask.progress import Reporter

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
    return _restriction(backbone, name, f"https://huggingface.co/{repository}" if repository else None)


def restriction_of_hub_model(name: str, model_type: str) -> str | None:
    """Return a sentence about the license of a model of transformers, or None if it allows every use.

    Args:
        name: on the Hugging Face Hub, or a local folder; its README names the license.
        model_type: as in its config.json. All versions of SAM 3 are under Meta's SAM License, whatever the README says.
    """
    is_local = Path(name).is_dir()
    license_name = "SAM License" if model_type.startswith("sam3") else _license_in_readme(name, is_local)
    return _restriction(name, license_name, None if is_local else f"https://huggingface.co/{name}")


def _license_in_readme(name: str, is_local: bool) -> str | None:
    from huggingface_hub import ModelCard

    readme = Path(name) / "README.md"
    if is_local and not readme.is_file():
        return None
    try:
        return ModelCard.load(readme if is_local else name).data.license
    except Exception:  # no README, no network, or no valid YAML: the license is not known
        return None


def _restriction(subject: str, license_name: str | None, url: str | None) -> str | None:
    if license_name in PERMISSIVE:
        return None
    where = f" at {url}" if url else ""
    if license_name is None:
        return f"the license of the weights of {subject} is not known: find out{where} what they may be used for."
    return (
        f"the weights of {subject} are under the license {license_name!r}, and so may be everything that is made with "
        f"them: read it{where} before you use or pass on this run."
    )


def report_restriction(restriction: str | None, stage: Path, processes: Processes, reporter: Reporter) -> None:
    """Print what restricts the use of the weights of a stage, and write it to its `weights-license.txt`.

    Args:
        restriction: a sentence; None: nothing does.
        stage: the folder of the stage.
        processes: only the main process writes the file.
        reporter: prints the sentence.
    """
    if restriction is None:
        return
    reporter.info(f"  {restriction}")
    if processes.is_main_process:
        write_text(stage / "weights-license.txt", f"{restriction[0].upper()}{restriction[1:]}\n")
