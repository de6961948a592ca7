"""Loading a published network: from Hugging Face Hub, or from a folder of the same form."""

from __future__ import annotations

import re
from pathlib import Path

from tagmask.artifacts import RUN_AGAIN, digest, file_digest
from tagmask.compute import Compute
from tagmask.deploy.hub_folder import GET_AGAIN, check_hub_folder
from tagmask.errors import RunError
from tagmask.models.backbone import first_line
from tagmask.models.saved_network import CONFIG_FILE
from tagmask.models.segmenter import Segmenter
from tagmask.predict import Predictor
from tagmask.text import shorten

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")


def load_published(source: str, compute: Compute) -> Predictor:
    """Load a published network. Nothing from the repository is executed: it is read as JSON and safetensors.

    Args:
        source: "hf://owner/name", "hf://owner/name@revision", or a folder that `tagmask export --format hub` wrote.
        compute: device and processes.

    Raises:
        RunError: the address is not valid, the files cannot be downloaded, or they are not a network of tagmask.
    """
    folder = _download(source) if source.startswith("hf://") else Path(source)
    check_hub_folder(folder)
    try:
        predictor = Predictor.load(folder, compute)
    except RunError as error:
        raise RunError(str(error).replace(RUN_AGAIN, GET_AGAIN)) from error
    files = (folder / CONFIG_FILE, Segmenter.weights_path(folder))
    return Predictor(predictor.network, predictor.inference, compute, digest([file_digest(file) for file in files]))


def _download(address: str) -> Path:
    """Download the files of a network from Hugging Face Hub, or find them in its cache; return their folder."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise RunError(f"{shorten(address)!r} is not the address of a network: write it as hf://owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repository, revision = match[1], match[2]
    files = [CONFIG_FILE, Segmenter.file_name]
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except GatedRepoError as error:
        raise RunError(f"{address} needs a permission: ask for it on its page, and run `hf auth login`.") from error
    except RevisionNotFoundError as error:
        raise RunError(f"{address}: there is no revision {revision!r}; correct what follows the @.") from error
    except RepositoryNotFoundError as error:
        raise RunError(f"{address} does not exist, or is private: correct it, or run `hf auth login`.") from error
    except Exception as error:  # of httpx, of the file system, ...
        raise RunError(
            f"{address} cannot be downloaded, and is not in the cache of Hugging Face ({first_line(error)}); connect "
            "to the network, or give the path of a local copy."
        ) from error
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise RunError(f"{address} is not a network that tagmask exported (it has no {missing[0]}).")
    return folder
