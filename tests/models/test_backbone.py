"""`Backbone`: features of any timm network, freezing and weights."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch

from tagmask.errors import RecipeError
from tagmask.models.backbone import Backbone, check_backbone, load_weights

# name: (channels, requested stride, actual stride)
NETWORKS = {
    "resnet18": (512, 8, 8),
    "resnet26d": (2048, 16, 16),
    "mobilenetv2_050": (1280, 16, 16),
    "convnext_atto": (320, 16, 16),
    "regnetx_002": (368, 32, 32),
    "mobilenetv3_small_050": (288, 8, 32),  # timm cannot dilate it
    "vit_tiny_patch16_224": (192, 8, 16),
    "swin_tiny_patch4_window7_224": (768, 16, 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_computes_features_of_images_of_any_size(name: str) -> None:
    channels, requested_stride, stride = NETWORKS[name]
    backbone = Backbone(name, output_stride=requested_stride).eval()
    assert backbone.channels == channels
    assert len(backbone.mean) == len(backbone.std) == 3
    with torch.inference_mode():
        assert backbone(torch.rand(2, 3, 64, 96)).shape == (2, channels, 64 // stride, 96 // stride)
        for size in ((1, 1), (50, 37), (33, 100)):
            features = backbone(torch.rand(1, 3, *size))
            assert features.shape[:2] == (1, channels)
            for cells, side in zip(features.shape[2:], size, strict=True):
                assert side < 32 or abs(cells - side / stride) <= 1
            assert torch.isfinite(features).all()


def test_the_patch_tokens_of_a_vit_are_arranged_on_the_grid() -> None:
    """Without blocks, which mix the tokens, a change of one corner of the image changes only the token there."""
    backbone = Backbone("vit_tiny_patch16_224", options={"depth": 0}).eval()
    image = torch.zeros(1, 3, 48, 80)
    changed = image.clone()
    changed[:, :, 32:, :16] = 1
    with torch.inference_mode():
        difference = (backbone(changed) - backbone(image)).abs().sum((0, 1))
    assert difference.shape == (3, 5)
    assert torch.nonzero(difference > 1e-4).tolist() == [[2, 0]]


def trainable(backbone: Backbone) -> set[str]:
    return {name for name, p in backbone.net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize(
    ("until_stride", "frozen"),
    [
        (0, ()),
        (2, ("conv1.", "bn1.")),
        (4, ("conv1.", "bn1.", "layer1.")),
        (8, ("conv1.", "bn1.", "layer1.", "layer2.")),  # as in the code of IRN and ReCAM
    ],
)
def test_a_resnet_is_frozen_up_to_a_stride(until_stride: int, frozen: tuple[str, ...], output_stride: int) -> None:
    backbone = Backbone("resnet50", output_stride=output_stride)
    backbone.freeze(until_stride, freeze_norm=True)
    names = {name for name, _ in backbone.net.named_parameters()}
    assert trainable(backbone) == {name for name in names if not name.startswith(frozen or ("none",))}


def test_dilation_of_irn_s_public_code() -> None:
    """strides (2, 2, 2, 1) and dilations (1, 1, 1, 1); strides (2, 2, 1, 1) and dilations (1, 1, 2, 2), where the first
    block of a stage is not dilated."""

    def dilations(output_stride: int, stage: str) -> list[int]:
        stages = Backbone("resnet50", output_stride=output_stride, dilation="irn").net
        blocks = list(getattr(stages, stage))
        return [max(m.dilation[0] for m in block.modules() if isinstance(m, torch.nn.Conv2d)) for block in blocks]

    for stage in ("layer3", "layer4"):
        assert set(dilations(16, stage)) == {1}
        first, *others = dilations(8, stage)
        assert first == 1
        assert set(others) == {2}
    images = torch.rand(1, 3, 70, 97)
    for stride in (8, 16):
        full, irn = (Backbone("resnet50", output_stride=stride, dilation=dilation) for dilation in ("full", "irn"))  # type: ignore[arg-type]
        assert full(images).shape == irn(images).shape


def test_only_resnets_have_the_dilation_of_irn() -> None:
    with pytest.raises(RecipeError, match="dilation irn is only for ResNets, not for 'mobilenetv2_050'"):
        Backbone("mobilenetv2_050", dilation="irn")


def test_other_networks_are_frozen_up_to_a_stride() -> None:
    mobilenet = Backbone("mobilenetv2_050")
    mobilenet.freeze(8, freeze_norm=True)
    names = {name for name, _ in mobilenet.net.named_parameters()}
    frozen = {".".join(name.split(".")[:2]) for name in names - trainable(mobilenet)}
    assert frozen == {"conv_stem.weight", "bn1.weight", "bn1.bias", "blocks.0", "blocks.1", "blocks.2"}
    assert not frozen & {".".join(name.split(".")[:2]) for name in trainable(mobilenet)}
    convnext = Backbone("convnext_atto")
    convnext.freeze(8, freeze_norm=True)
    assert {name[:8] for name in trainable(convnext)} == {"stages.2", "stages.3", "head.nor"}


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_frozen_norms_keep_their_statistics_in_training(freeze_norm: bool) -> None:
    backbone = Backbone("resnet18")
    backbone.freeze(8, freeze_norm)
    before = {name: value.clone() for name, value in backbone.net.named_buffers()}
    backbone.eval()
    backbone.train()
    backbone(torch.rand(2, 3, 40, 40))
    changed = {name for name, value in backbone.net.named_buffers() if not torch.equal(value, before[name])}
    assert bool(changed) != freeze_norm
    assert backbone.training


def write_state_dict(net: torch.nn.Module, file: Path, wrap: bool = False) -> Path:
    state: dict[str, Any] = net.state_dict()
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if wrap else state, file)
    return file


@pytest.mark.parametrize(("suffix", "wrap"), [(".safetensors", False), (".pth", False), (".pth", True)])
@pytest.mark.parametrize("num_classes", [0, 1000])  # without and with a head
def test_weights_are_loaded_from_a_file(tmp_path: Path, suffix: str, wrap: bool, num_classes: int) -> None:
    torch.manual_seed(1)
    net = timm.create_model("resnet18", num_classes=num_classes).eval()
    file = write_state_dict(net, tmp_path / f"w{suffix}", wrap)
    backbone = Backbone("resnet18", str(file), output_stride=32).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(image), net.forward_features(image))


class MaliciousPickle:
    """An object whose unpickling creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_files_that_do_not_fit_raise_an_error_of_one_sentence(tmp_path: Path) -> None:
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "malicious.pth").write_bytes(pickle.dumps(MaliciousPickle(tmp_path / "created")))
    torch.save({"conv1.weight": MaliciousPickle(tmp_path / "created")}, tmp_path / "malicious2.pth")
    torch.save(torch.rand(3), tmp_path / "tensor.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({**state, "conv1.weight": 3}, tmp_path / "number.pth")
    torch.save({k: v for k, v in state.items() if "layer4" not in k}, tmp_path / "part.pth")
    write_state_dict(timm.create_model("resnet18", num_classes=0, in_chans=1), tmp_path / "gray.safetensors")
    write_state_dict(timm.create_model("vit_tiny_patch16_224", num_classes=0), tmp_path / "vit.safetensors")
    expected = {
        "none.pth": "does not exist",
        "text.pth": "cannot be read",
        "text.safetensors": "cannot be read",
        "empty.pth": "cannot be read",
        "malicious.pth": "cannot be read",
        "malicious2.pth": "cannot be read",
        "tensor.pth": "holds no layer of this backbone",
        "list.pth": "holds no layer of this backbone",
        "number.pth": r"0 layers are missing and 1 have another shape \(first: conv1.weight\)",
        "part.pth": r"25 layers are missing and 0 have another shape",
        "gray.safetensors": r"0 layers are missing and 1 have another shape \(first: conv1.weight\)",
        "vit.safetensors": "holds no layer of this backbone",
    }
    for name, reason in expected.items():
        with pytest.raises(RecipeError, match=reason) as error:
            Backbone("resnet18", str(tmp_path / name))
        assert "\n" not in str(error.value)
        assert name in str(error.value)
    assert not (tmp_path / "created").exists()


def test_a_missing_weights_file_is_an_error() -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load_weights(timm.create_model("resnet18"), Path("none.pth"))


def test_pretrained_weights_that_cannot_be_downloaded_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match=r"pretrained weights of 'resnet18' could not be loaded .* or give a local"):
        Backbone("resnet18", "pretrained")


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("resnet_18", {}, "backbone 'resnet_18' is not a timm model: did you mean 'resnet18'?"),
        ("resnet18", {"output_stride": 4}, "output_stride 4 is not possible: give one of (8, 16, 32)."),
        ("resnet18", {"options": {"color": 3}}, "cannot be created with options {'color': 3}"),
        ("hiera_tiny_224", {}, "does not take images of any size"),
    ],
)
def test_networks_that_cannot_be_created_are_an_error_of_one_sentence(
    name: str, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RecipeError) as error:
        Backbone(name, **arguments)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_names_on_a_model_hub_are_not_checked() -> None:
    assert check_backbone("hf-hub:user/net") == "hf-hub:user/net"


def test_options_are_passed_to_timm() -> None:
    backbone = Backbone("mobilenetv2_050", options={"pad_type": "same"})
    assert type(backbone.net.conv_stem).__name__ == "Conv2dSame"


def test_checking_a_name_does_not_import_lightning() -> None:
    """A recipe is checked before anything is trained, and the import of Lightning takes seconds."""
    code = (
        "import sys; from tagmask.models.backbone import check_backbone; check_backbone('resnet18'); "
        "assert not {'lightning', 'segmentation_models_pytorch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
