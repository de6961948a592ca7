"""Segmentation networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tagmask.errors import RecipeError, RunError
from tagmask.models.backbone import Backbone
from tagmask.models.saved_network import write_weights
from tagmask.models.segmenter import FILE, SMP_NAMES, DilatedHead, Segmenter

CLASSES = ("a", "b")
NETWORKS = [
    ("deeplabv2", "resnet18", 8),
    ("deeplabv2", "vit_tiny_patch16_224", 8),
    ("Unet", "mobilenetv2_050", 16),
    ("FPN", "convnext_atto", 16),
    ("DeepLabV3Plus", "resnet18", 16),
]


def a_segmenter(architecture: str = "Unet", backbone: str = "resnet18", stride: int = 16, **options: Any) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(architecture, backbone, CLASSES, stride, options or None).eval()


@pytest.mark.parametrize(("architecture", "backbone", "stride"), NETWORKS)
@torch.inference_mode()
def test_any_size_of_image(architecture: str, backbone: str, stride: int) -> None:
    network = a_segmenter(architecture, backbone, stride)
    for size in ((64, 96), (37, 50), (33, 1), (1, 1)):
        logits = network(torch.rand(1, 3, *size))
        assert logits.shape[:2] == (1, 3)
        assert torch.isfinite(logits).all()
        if architecture != "deeplabv2":  # it has a decoder up to the image's own size
            assert logits.shape[2:] == size


@pytest.mark.parametrize("architecture", ["deeplabv2", *SMP_NAMES])
def test_every_architecture_there_is(architecture: str) -> None:
    network = a_segmenter(architecture)
    with torch.inference_mode():
        for size in ((40, 64), (1, 1)):
            assert network(torch.rand(1, 3, *size)).shape[:2] == (1, 3)


@torch.inference_mode()
def test_padding_does_not_move_the_image() -> None:
    """An image of 40×40 is padded to 64×64 below and on the right; what comes back is of the image's own place."""
    network = a_segmenter()
    image = torch.rand(1, 3, 40, 40)
    padded = torch.nn.functional.pad(image, (0, 24, 0, 24), mode="replicate")
    torch.testing.assert_close(network(image), network(padded)[:, :, :40, :40])


@pytest.mark.parametrize(("architecture", "backbone", "stride"), NETWORKS)
@torch.inference_mode()
def test_it_comes_back_the_same(tmp_path: Path, architecture: str, backbone: str, stride: int) -> None:
    network = a_segmenter(architecture, backbone, stride)
    network.save(tmp_path, test={"scales": [1.0]})
    loaded = Segmenter.load(tmp_path)
    images = torch.rand(1, 3, 45, 61)
    assert loaded.classes == CLASSES
    assert (loaded.mean, loaded.std) == (network.mean, network.std)
    assert torch.equal(loaded(images), network(images))


@pytest.mark.parametrize(("architecture", "backbone", "stride"), NETWORKS)
def test_the_encoder_starts_from_a_classifier_s(architecture: str, backbone: str, stride: int) -> None:
    network = a_segmenter(architecture, backbone, stride)
    torch.manual_seed(5)
    weights = Backbone(backbone).net.state_dict()
    network.load_encoder(weights)
    own = network.timm_network().state_dict()
    given = {name.replace(".", "_"): value for name, value in weights.items()}  # as timm's feature nets name them
    shared = [name for name in own if name.replace(".", "_") in given]
    assert len(shared) > 0.9 * len(own) > 30
    assert all(torch.equal(own[name], given[name.replace(".", "_")]) for name in shared)


@pytest.mark.parametrize(("architecture", "backbone", "stride"), NETWORKS)
def test_every_parameter_is_the_encoder_s_or_new(architecture: str, backbone: str, stride: int) -> None:
    network = a_segmenter(architecture, backbone, stride)
    old, new = set(network.timm_network().parameters()), set(network.new_parameters())
    assert old
    assert new
    assert not old & new
    assert old | new == set(network.parameters())


def test_weights_of_another_backbone_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"only \d+ of the \d+ layers of 'resnet18' are in the weights given"):
        a_segmenter().load_encoder(Backbone("mobilenetv2_050").net.state_dict())


@torch.no_grad()
def test_deeplab_v2_s_head() -> None:
    """Four 3×3 convolutions, dilated by 6, 12, 18, 24, whose outputs are added (Chen et al. 2018, ASPP-L)."""
    torch.manual_seed(0)
    head = DilatedHead(5, 3)
    features = torch.rand(1, 5, 30, 30)
    expected = torch.zeros(1, 3, 30, 30)
    assert not any(branch.bias.any() for branch in head.branches)
    head.branches[0].bias += 0.5
    expected += 0.5
    for branch, dilation in zip(head.branches, (6, 12, 18, 24), strict=True):
        assert branch.weight.shape == (3, 5, 3, 3)
        assert branch.weight.std() == pytest.approx(0.01, rel=0.3)
        padded = torch.nn.functional.pad(features, (dilation,) * 4)
        for i in range(3):
            for j in range(3):
                window = padded[:, :, i * dilation : i * dilation + 30, j * dilation : j * dilation + 30]
                expected += torch.einsum("bdhw,kd->bkhw", window, branch.weight[:, :, i, j])
    torch.testing.assert_close(head(features), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "backbone", "sentence"),
    [
        ("Unett", "resnet18", "architecture 'Unett' is not known: did you mean 'Unet'?"),
        ("Unet", "resnet_18", "did you mean 'resnet18'?"),
        ("UnetPlusPlus", "vit_tiny_patch16_224", "cannot stand on backbone 'vit_tiny_patch16_224'"),
    ],
)
def test_networks_that_cannot_be_had(architecture: str, backbone: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        Segmenter(architecture, backbone, CLASSES)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_segmenter_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"segmenter\.safetensors does not exist"):
        Segmenter.load(tmp_path)
    write_weights(tmp_path / FILE, {"a": torch.zeros(1)}, {"kind": "classifier"})
    with pytest.raises(RunError, match="does not hold a segmentation network but a classifier"):
        Segmenter.load(tmp_path)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_encoder_s_norms_may_keep_their_statistics(frozen: bool) -> None:
    """The decoder's are new: with those they begin with it would hardly learn."""
    network = a_segmenter()
    network.freeze_norm = frozen
    network.train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.rand(2, 3, 32, 32))
    changed = [name for name, value in network.named_buffers() if not torch.equal(value, before[name])]
    assert any(name.startswith("net.encoder") for name in changed) != frozen
    assert any(name.startswith("net.decoder") for name in changed)
