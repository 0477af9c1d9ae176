"""The networks of the specification."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mnist_lit.backbones import DS_CNN_V1, DS_CNN_V2, DS_CNN_V3, Activation, SquaredReLU

COUNTS: dict[type[nn.Module], int] = {DS_CNN_V1: 5_226, DS_CNN_V2: 4_070, DS_CNN_V3: 6_526}
OPTIONS = [{}, {"dilation": 2}, {"dropout": 0.2}, {"dropout": (0.1, 0.2)}, {"activation": "squared_relu"}]


@pytest.mark.parametrize("backbone", COUNTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_parameter_count_is_that_of_the_specification(backbone: type[nn.Module], options: dict[str, object]) -> None:
    network = backbone(**options)
    assert sum(weights.numel() for weights in network.parameters() if weights.requires_grad) == COUNTS[backbone]
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 31), (13, 9), (28, 28), (40, 64)])
def test_any_input_from_8_px_is_accepted(height: int, width: int) -> None:
    assert DS_CNN_V2(dilation=2)(torch.randn(3, 1, height, width)).shape == (3, 10)


def test_squared_relu_equals_its_definition() -> None:
    features = torch.tensor([-2.0, 0.0, 0.5, 3.0], requires_grad=True)
    squared = SquaredReLU()(features)
    assert squared.tolist() == [0, 0, 0.25, 9]
    squared.sum().backward()
    assert features.grad is not None
    assert features.grad.tolist() == [0, 0, 1, 6]


def test_each_block_has_its_own_activation() -> None:
    def squared(activation: Activation | tuple[Activation, Activation]) -> list[bool]:
        network = DS_CNN_V2(activation=activation)
        return [any(isinstance(part, SquaredReLU) for part in block) for block in (network.block1, network.block2)]

    assert squared("relu") == [False, False]
    assert squared("squared_relu") == [True, True]
    assert squared(("relu", "squared_relu")) == [False, True]


@pytest.mark.parametrize("activation", ["relu", "squared_relu"])
def test_pool_before_activation_equals_activation_before_pool(activation: Activation) -> None:
    network = DS_CNN_V1(activation=activation)
    reference = copy.deepcopy(network)

    def activation_before_pool(images: Tensor) -> Tensor:
        for block in (reference.block1, reference.block2):
            conv, norm, pool, activate, _ = block
            images = pool(activate(norm(conv(images))))
        logits: Tensor = reference.head(reference.pool(images).flatten(1))
        return logits

    images, labels = torch.randn(8, 1, 28, 28), torch.arange(8)
    ours, theirs = network(images), activation_before_pool(images)
    assert torch.equal(ours, theirs)
    for logits in (ours, theirs):
        nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    for (name, weights), (_, others) in zip(network.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(weights.grad, others.grad, msg=name)
