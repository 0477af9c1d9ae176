"""Several networks as one batched model, and their batches: the networks differ only in their values and images."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from mnist_lit.classifier import Batch, DigitClassifier, PreparedBatch
from mnist_lit.data.batches import DigitDataset


class StackedBackbones(nn.Module):
    """Backbones as one network, whose parameters and buffers have one more dimension, the first: the networks.

    vmap computes all of them at once (PyTorch's tutorial "Model ensembling").

    Args:
        backbones: Networks of the same class and size, in the same mode.

    Raises:
        RuntimeError: They differ.
    """

    def __init__(self, backbones: Sequence[nn.Module]) -> None:
        super().__init__()
        self.count = len(backbones)
        self.networks = copy.deepcopy(backbones[0])
        parameters, buffers = stack_module_state(backbones)
        for name, tensor in (parameters | buffers).items():
            module, _, attribute = name.rpartition(".")
            tensor = tensor.contiguous()  # for channels_last, vmap (torch 2.15) would pool the networks one by one
            value = nn.Parameter(tensor, tensor.requires_grad) if name in parameters else tensor
            setattr(self.networks.get_submodule(module), attribute, value)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10, K) of float images (N, K, 1, H, W), of which each network gets its own."""
        state = {**dict(self.networks.named_parameters()), **dict(self.networks.named_buffers())}
        logits: Tensor = vmap(self._forward, in_dims=(0, 1), out_dims=2)(state, images)
        return logits

    def _forward(self, state: dict[str, Tensor], images: Tensor) -> Any:
        return functional_call(self.networks, state, (images,))

    def state_dict_of(self, number: int) -> dict[str, Tensor]:
        """The state of one of the networks."""
        return {name: tensor[number].clone() for name, tensor in self.networks.state_dict().items()}


class NetworkMetrics(nn.Module):
    """Accuracy and mean cross-entropy of each network in a stage; in place of `StageMetrics`."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self.losses: list[Tensor] = []
        """Mean of each step, (K,)."""
        self.correct: list[Tensor] = []
        self.sizes: list[int] = []

    def reset(self) -> None:
        """Forget all steps."""
        for steps in (self.losses, self.correct, self.sizes):
            steps.clear()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (N, 10, K) and labels (N, K)."""
        logits = logits.detach()
        self.losses.append(F.cross_entropy(logits, labels, reduction="none").mean(0))
        self.correct.append((logits.argmax(1) == labels).sum(0))
        self.sizes.append(len(labels))

    def by_network(self) -> dict[str, Tensor]:
        """The metrics of each network, (K,) on the CPU."""
        sizes = torch.tensor(self.sizes, dtype=torch.double)
        losses, correct = torch.stack(self.losses).cpu().double(), torch.stack(self.correct).cpu()
        return {
            f"accuracy/{self.stage}": correct.sum(0) / sizes.sum(),
            f"loss/{self.stage}": sizes @ losses / sizes.sum(),
        }

    def compute(self) -> dict[str, Tensor]:
        """The means over the networks, without those that have diverged."""
        return {name: values.nanmean().float() for name, values in self.by_network().items()}


class StackedClassifiers(DigitClassifier):
    """Classifiers with the same settings, trained at once; each network has its own images, gradients and metrics.

    Args:
        backbone: The networks.
        settings: The other settings of `DigitClassifier`.
    """

    backbone: StackedBackbones
    train_metrics: NetworkMetrics  # type: ignore[assignment]
    val_metrics: NetworkMetrics  # type: ignore[assignment]

    def __init__(self, backbone: StackedBackbones, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.train_metrics = NetworkMetrics("train")
        self.val_metrics = NetworkMetrics("val")

    def training_step(self, batch: Batch | PreparedBatch, batch_idx: int) -> Tensor:
        # the mean over all networks becomes their sum, so that each gradient is that of the network's own mean
        return super().training_step(batch, batch_idx) * self.backbone.count

    def validation_step(self, batch: Batch | PreparedBatch, batch_idx: int) -> None:
        images, labels = batch
        self.val_metrics.update(self.backbone(self.preprocess.normalize(images)), labels)


class StackedBatches:
    """Batches of prepared images (N, K, 1, H, W) and labels (N, K), in which each network has its own images.

    Args:
        data: Prepared images (M, 1, H, W) that the networks share, and their labels.
        rows: The images of each network, (K, number of images).
        batch_size: Images per batch of each network.
        rng_states: State of torch's generator for each network, to order its images in each epoch as in a run of its
            own; without them, their order is that of `rows`.
    """

    def __init__(self, data: DigitDataset, rows: Tensor, batch_size: int, rng_states: Sequence[Tensor] = ()) -> None:
        self.data = data
        self.rows = rows
        self.batch_size = batch_size
        self.rng_states = list(rng_states)

    def __len__(self) -> int:
        return -(-self.rows.shape[1] // self.batch_size)

    def __iter__(self) -> Iterator[PreparedBatch]:
        rows = self.rows.gather(1, self._orders()) if self.rng_states else self.rows
        for batch in torch.split(rows.T.to(self.data.labels.device), self.batch_size):  # (N, K)
            images = self.data.images.index_select(0, batch.flatten())
            yield PreparedBatch(images.view(*batch.shape, *images.shape[1:]), self.data.labels[batch])

    def _orders(self) -> Tensor:
        """The order of the next epoch of each network, with the random numbers that its own DataLoader would draw."""
        orders = []
        with torch.random.fork_rng(devices=[]):
            for number, state in enumerate(self.rng_states):
                torch.set_rng_state(state)
                torch.empty((), dtype=torch.int64).random_()  # the DataLoader's seed of its workers
                seed = int(torch.empty((), dtype=torch.int64).random_())  # its sampler's seed of the order
                orders.append(torch.randperm(self.rows.shape[1], generator=torch.Generator().manual_seed(seed)))
                self.rng_states[number] = torch.get_rng_state()
        return torch.stack(orders)
