"""Export of the network of a run in the formats of `NETWORK_FORMATS`."""

from __future__ import annotations

from pathlib import Path

from tagmask.artifacts import atomic_folder
from tagmask.deploy.hub_folder import ONNX_NAME, write_hub_folder
from tagmask.deploy.onnx_export import export_onnx
from tagmask.deploy.trained_network import TrainedNetwork
from tagmask.errors import RunError
from tagmask.models.segmenter import Segmenter
from tagmask.progress import Reporter


def write_network_as(network: TrainedNetwork, out: Path, format: str, reporter: Reporter) -> Path:
    """Write the network of a run.

    Args:
        network: the network.
        out: the folder to write to.
        format: one of `NETWORK_FORMATS`.
        reporter: prints messages.

    Returns:
        The folder that was written: `out`/`format`. It appears when it is complete.

    Raises:
        RunError: the stage is not finished, the output exists already, or the network cannot be exported.
    """
    path = out / format
    if path.exists():
        raise RunError(f"{path} exists already: remove it, or choose another --out.")
    if not network.stage.is_done:
        raise RunError(f"{network.stage.path} is not finished: run the command of the run again first.")
    segmenter = Segmenter.load(network.stage.path)
    with atomic_folder(path) as folder:
        if format == "onnx":
            export_onnx(segmenter, folder / ONNX_NAME)
            return path
        try:
            export_onnx(segmenter, folder / ONNX_NAME)
        except RunError as error:
            reporter.info(f"{ONNX_NAME} is left out: {error}")
        write_hub_folder(folder, network, segmenter)
    return path
