"""`Segmenter`: DeepLab-v2 and the architectures of segmentation_models_pytorch on several backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tagmask.errors import RecipeError, RunError
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.models.saved_network import write_weights_and_config
from tagmask.models.segmenter import SMP_ARCHITECTURES, DilatedHead, Segmenter, initial_segmenter

CLASSES = ("a", "b")
NETWORKS = [
    ("deeplabv2", "resnet18", 8),
    ("deeplabv2", "vit_tiny_patch16_224", 8),
    ("Unet", "mobilenetv2_050", 16),
    ("FPN", "convnext_atto", 16),
    ("DeepLabV3Plus", "resnet18", 16),
]
OVERLAY = {"pretrained_cfg_overlay": {"mean": [0.5] * 3, "std": [0.25] * 3}}
TF_OPTIONS = {"pad_type": "same", "pretrained_cfg_overlay": {"mean": [0.5] * 3, "std": [0.5] * 3}}


def create_segmenter(
    architecture: str = "Unet", backbone: str = "resnet18", stride: int = 16, **options: Any
) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(architecture, backbone, CLASSES, stride, options or None).eval()


@pytest.mark.parametrize(("architecture", "backbone", "stride"), NETWORKS)
@torch.inference_mode()
def test_images_of_any_size_are_segmented(architecture: str, backbone: str, stride: int) -> None:
    network = create_segmenter(architecture, backbone, stride)
    for size in ((64, 96), (37, 50), (33, 1), (1, 1)):
        logits = network(torch.rand(1, 3, *size))
        assert logits.shape[:2] == (1, 3)
        assert torch.isfinite(logits).all()
        if architecture != "deeplabv2":  # the decoders of the others upsample to the size of the image
            assert logits.shape[2:] == size


@pytest.mark.parametrize("architecture", ["deeplabv2", *SMP_ARCHITECTURES])
def test_every_architecture_can_be_created_and_trained(architecture: str) -> None:
    network = create_segmenter(architecture)
    with torch.inference_mode():
        for size in ((40, 64), (1, 1)):
            assert network(torch.rand(1, 3, *size)).shape[:2] == (1, 3)
    network.train()(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in network.head_parameters())


@torch.inference_mode()
def test_padding_does_not_move_the_logits() -> None:
    """An image of 40×40 is padded to 64×64 at the bottom and on the right, and the logits are cropped."""
    network = create_segmenter()
    image = torch.rand(1, 3, 40, 40)
    padded = torch.nn.functional.pad(image, (0, 24, 0, 24), mode="replicate")
    torch.testing.assert_close(network(image), network(padded)[:, :, :40, :40])


@pytest.mark.parametrize("architecture", ["deeplabv2", *SMP_ARCHITECTURES])
def test_images_are_normalized_as_for_the_backbone_alone(architecture: str) -> None:
    for backbone, options in (
        ("resnet18", {}),
        ("resnet18", OVERLAY),
        ("mobilenetv2_050", {}),
        ("mobilenetv2_050", TF_OPTIONS),
    ):
        network = create_segmenter(architecture, backbone, **options)
        expected = Backbone(backbone, options=options)
        assert (network.mean, network.std) == (expected.mean, expected.std)
    assert (network.mean, network.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(("architecture", "backbone", "stride"), NETWORKS)
@torch.inference_mode()
def test_a_loaded_network_equals_the_saved_one(tmp_path: Path, architecture: str, backbone: str, stride: int) -> None:
    network = create_segmenter(architecture, backbone, stride)
    network.save(tmp_path, test={"scales": [1.0], "crf": None})
    loaded = Segmenter.load(tmp_path)
    images = torch.rand(1, 3, 45, 61)
    assert loaded.classes == CLASSES
    assert (loaded.mean, loaded.std) == (network.mean, network.std)
    assert torch.equal(loaded(images), network(images))


@pytest.mark.parametrize(("architecture", "backbone", "stride"), NETWORKS)
def test_the_encoder_loads_the_weights_of_a_backbone(architecture: str, backbone: str, stride: int) -> None:
    network = create_segmenter(architecture, backbone, stride)
    torch.manual_seed(5)
    weights = Backbone(backbone).net.state_dict()
    network.load_encoder(weights)
    own = network.timm_network().state_dict()
    by_flat_name = {name.replace(".", "_"): value for name, value in weights.items()}  # as in timm's feature networks
    shared = [name for name in own if name.replace(".", "_") in by_flat_name]
    assert len(shared) > 0.9 * len(own) > 30
    assert all(torch.equal(own[name], by_flat_name[name.replace(".", "_")]) for name in shared)


@pytest.mark.parametrize(("architecture", "backbone", "stride"), NETWORKS)
def test_every_parameter_belongs_to_the_encoder_or_the_head(architecture: str, backbone: str, stride: int) -> None:
    network = create_segmenter(architecture, backbone, stride)
    encoder, head = set(network.timm_network().parameters()), set(network.head_parameters())
    assert encoder
    assert head
    assert not encoder & head
    assert encoder | head == set(network.parameters())


def test_the_encoder_does_not_load_the_weights_of_another_backbone() -> None:
    with pytest.raises(RecipeError, match=r"the weights contain only \d+ of the \d+ layers of 'resnet18'; give"):
        create_segmenter().load_encoder(Backbone("mobilenetv2_050").net.state_dict())


@torch.no_grad()
def test_the_dilated_head_is_the_aspp_of_deeplab_v2() -> None:
    """Its four 3×3 convolutions have dilations 6, 12, 18 and 24, and their outputs are added (Chen et al., 2018)."""
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
    ("architecture", "backbone", "options", "sentence"),
    [
        ("Unett", "resnet18", {}, "architecture 'Unett' is not known: did you mean 'Unet'?"),
        ("Unet", "resnet_18", {}, "did you mean 'resnet18'?"),
        ("Unet", "hiera_tiny_224", {}, "backbone 'hiera_tiny_224' does not take images of any size"),
        ("Unet", "swin_tiny_patch4_window7_224", {}, "does not take images of any size"),
        ("Unet", "resnet18", {"color": 3}, "cannot use backbone 'resnet18' with options {'color': 3}"),
        ("UnetPlusPlus", "vit_tiny_patch16_224", {}, "cannot use backbone 'vit_tiny_patch16_224'"),
    ],
)
def test_networks_that_cannot_be_created_are_an_error_of_one_sentence(
    architecture: str, backbone: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RecipeError) as error:
        Segmenter(architecture, backbone, CLASSES, options=options)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", ["deeplabv2", "Unet"])
def test_an_output_stride_that_timm_does_not_support_is_an_error(architecture: str) -> None:
    with pytest.raises(RecipeError, match="output_stride 4 is not possible"):
        Segmenter(architecture, "resnet18", CLASSES, output_stride=4)


def test_a_folder_without_a_segmenter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"segmenter\.safetensors does not exist"):
        Segmenter.load(tmp_path)
    write_weights_and_config(Segmenter.weights_path(tmp_path), {"a": torch.zeros(1)}, {"kind": "classifier"})
    with pytest.raises(RunError, match="does not hold a segmentation network but a classifier"):
        Segmenter.load(tmp_path)


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_only_the_norms_of_the_encoder_can_keep_their_statistics(freeze_norm: bool) -> None:
    """The decoder is new. With its initial statistics it would hardly learn."""
    network = create_segmenter()
    network.freeze_norm = freeze_norm
    network.train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.rand(2, 3, 32, 32))
    changed = [name for name, value in network.named_buffers() if not torch.equal(value, before[name])]
    assert any(name.startswith("net.encoder") for name in changed) != freeze_norm
    assert any(name.startswith("net.decoder") for name in changed)


@pytest.fixture
def classifier(tmp_path: Path) -> Classifier:
    """A classifier that is saved in `tmp_path`."""
    classifier = Classifier(Backbone("mobilenetv2_050", options=TF_OPTIONS), CLASSES)
    classifier.save(tmp_path)
    return classifier


def first_weight(network: Segmenter | Classifier) -> torch.Tensor:
    timm_network = network.timm_network() if isinstance(network, Segmenter) else network.backbone.net
    return timm_network.state_dict()["conv_stem.weight"]


@pytest.mark.parametrize("architecture", ["deeplabv2", "Unet"])
def test_the_initial_segmenter_has_the_classifier_s_backbone(
    tmp_path: Path, classifier: Classifier, architecture: str
) -> None:
    network = initial_segmenter(tmp_path, architecture, CLASSES, None, "classifier", 8, None)
    assert network.classes == CLASSES
    assert network.config["network"] == {
        "architecture": architecture,
        "backbone": "mobilenetv2_050",
        "output_stride": 8,
        "options": TF_OPTIONS,
    }
    assert torch.equal(first_weight(network), first_weight(classifier))


def test_the_initial_segmenter_can_have_other_weights(tmp_path: Path, classifier: Classifier) -> None:
    random = initial_segmenter(tmp_path, "Unet", CLASSES, None, "none", 16, None)
    assert not torch.equal(first_weight(random), first_weight(classifier))
    torch.save(classifier.backbone.net.state_dict(), tmp_path / "weights.pth")
    from_file = initial_segmenter(tmp_path, "Unet", CLASSES, None, str(tmp_path / "weights.pth"), 16, None)
    assert torch.equal(first_weight(from_file), first_weight(classifier))


def test_the_initial_segmenter_can_have_another_backbone(tmp_path: Path, classifier: Classifier) -> None:
    network = initial_segmenter(tmp_path, "Unet", CLASSES, "resnet18", "none", 16, None)
    assert network.config["network"]["backbone"] == "resnet18"
    assert network.config["network"]["options"] == {}
    with pytest.raises(RecipeError, match=r"only \d+ of the \d+ layers of 'resnet18'"):
        initial_segmenter(tmp_path, "Unet", CLASSES, "resnet18", "classifier", 16, None)
