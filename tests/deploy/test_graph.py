"""`DeployGraph` computes what the network computes, before anything is exported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers.padding import get_same_padding
from torch import nn

from tagmask.deploy.graph import AveragePool, DeployGraph, _round_to_nearest, same_padding
from tagmask.models.segmenter import DEEPLAB_V2, SMP_ARCHITECTURES
from tests.deploy.networks import CLASSES, make_network, random_images, single_pass

NETWORKS = [
    *((architecture, "test_resnet") for architecture in (DEEPLAB_V2, *SMP_ARCHITECTURES)),
    (DEEPLAB_V2, "test_vit"), (DEEPLAB_V2, "test_convnext"),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "backbone"), NETWORKS)
def test_the_graph_equals_a_single_pass_of_the_network(architecture: str, backbone: str) -> None:
    network = make_network(architecture, backbone)
    graph = DeployGraph(network)
    for shape in ((2, 97, 131), (1, 20, 25)):
        images = random_images(*shape)
        expected_mask, expected_confidence = single_pass(network, images)
        with torch.inference_mode():
            mask, confidence, logits = (output.numpy() for output in graph(torch.from_numpy(images)))
        assert mask.dtype == np.uint8
        assert confidence.dtype == np.float32
        assert (mask == expected_mask).mean() > 0.9995
        np.testing.assert_allclose(confidence, expected_confidence, atol=1e-4)
        assert len(np.unique(mask)) > 1
        assert logits.shape == (shape[0], len(CLASSES) + 1, *shape[1:])
        np.testing.assert_array_equal(logits.argmax(1), mask)


@given(height=st.integers(1, 40), width=st.integers(1, 40), rows=st.integers(1, 7), columns=st.integers(1, 7))
def test_average_pooling_by_matrices_equals_that_of_torch(height: int, width: int, rows: int, columns: int) -> None:
    features = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = nn.AdaptiveAvgPool2d((rows, columns))(features)
    torch.testing.assert_close(AveragePool((rows, columns))(features), expected, atol=1e-5, rtol=1e-5)


@given(side=st.integers(1, 500), kernel=st.integers(1, 7), stride=st.integers(1, 4), dilation=st.integers(1, 4))
def test_the_padding_is_that_of_timm(side: int, kernel: int, stride: int, dilation: int) -> None:
    assert same_padding(side, kernel, stride, dilation) == get_same_padding(side, kernel, stride, dilation)


@given(side=st.integers(1, 10_000), multiple=st.integers(1, 40))
def test_sides_are_rounded_as_python_rounds(side: int, multiple: int) -> None:
    assert _round_to_nearest(side, multiple) == round(side / multiple) * multiple
