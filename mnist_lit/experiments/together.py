"""Runs of a comparison as one batched model per recipe, on one device: they differ only in their seeds and folds."""

import contextlib
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from mnist_lit import UserError, files
from mnist_lit.callbacks.divergence import DivergedError
from mnist_lit.callbacks.prepared import prepare_all
from mnist_lit.callbacks.progress import ProgressBar
from mnist_lit.callbacks.record import RunLogger
from mnist_lit.callbacks.stopping import StopAfterBatch
from mnist_lit.checkpoints.io import SETTINGS, AtomicCheckpointIO
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.batches import Batch, DigitDataset
from mnist_lit.data.datamodule import EVAL_BATCH_SIZE, MNISTDataModule
from mnist_lit.experiments.recipes import Recipe, build, check_supported
from mnist_lit.experiments.runs import Outcome, Run, Trained, measure, open_folder, report_outcome
from mnist_lit.experiments.stacked import StackedBackbones, StackedBatches, StackedClassifiers
from mnist_lit.run import overhead, workarounds
from mnist_lit.run.components import as_list
from mnist_lit.run.options import report_errors
from mnist_lit.signals import stop_after_batches

EMA = "lightning.pytorch.callbacks.EMAWeightAveraging"

UNSUPPORTED: dict[str, Callable[[Any], bool]] = {
    "watch_test": bool,
    "model.augment": lambda augment: augment is not None,  # each network would need random numbers of its own
    "model.schedule": lambda schedule: schedule == "plateau",  # all networks have one learning rate
    "trainer.callbacks": lambda callbacks: any(callback["class_path"] != EMA for callback in as_list(callbacks)),
    "trainer.detect_anomaly": bool,  # one network that diverges would stop all
    "trainer.gradient_clip_val": bool,  # the norm would be that of all networks
    "trainer.plugins": bool,
    "trainer.precision": lambda precision: str(precision) not in ("None", "32", "32-true"),
    "trainer.reload_dataloaders_every_n_epochs": bool,  # draws other random numbers for the order of images
    "trainer.strategy": lambda strategy: strategy != "auto",
}
"""Options of `mnist-lit fit` that --together restricts, each with a test for the values it rejects."""

WAY_OUT = "leave out --together"

MOST_TOGETHER = 64
"""Networks that are trained at once, so that their images, gradients and logs fit into memory."""


class Member(NamedTuple):
    """A network of a group, before its first step."""

    run: Run
    model: DigitClassifier
    data: MNISTDataModule
    rng_state: Tensor
    """State of torch's generator after both were built."""
    is_val: Tensor
    """Whether it is validated on each image, and not trained, (M,)."""


class NetworkCurves(Callback):
    """Write the curves of each network to the folder of its run, and note those that diverge."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.loggers = [RunLogger(folder) for folder in folders]
        self.errors: dict[int, DivergedError] = {}
        self.metrics: dict[str, Tensor] = {}
        """The metrics of the last epoch, (K,) each."""
        self.first_step = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StackedClassifiers)
        self.metrics = pl_module.train_metrics.by_network() | pl_module.val_metrics.by_network()
        self._find_diverged(trainer, pl_module)
        for number, logger in enumerate(self.loggers):
            if number not in self.errors:
                values = {tag: metric[number].item() for tag, metric in self.metrics.items()}
                logger.log_metrics(values, step=trainer.global_step - 1)
                logger.save()
        if len(self.errors) == len(self.loggers):
            trainer.should_stop = True

    def _find_diverged(self, trainer: Trainer, model: StackedClassifiers) -> None:
        losses = torch.stack(model.train_metrics.losses).cpu()  # (steps, K)
        weights = [tensor.flatten().isfinite() for tensor in model.backbone.networks.state_dict().values()]
        is_finite = torch.cat([tensor.view(len(self.loggers), -1) for tensor in weights], dim=1).all(1).cpu()
        for number in set(range(len(self.loggers))) - self.errors.keys():
            problem, step = "A weight became infinite or NaN", trainer.global_step
            diverged = (~losses[:, number].isfinite()).nonzero()
            if len(diverged):
                first = int(diverged[0])
                problem = f"The loss became {losses[first, number].item()}"
                step = self.first_step + first // trainer.accumulate_grad_batches + 1
            if len(diverged) or not is_finite[number]:
                self.errors[number] = DivergedError(
                    f"{problem} at step {step} (epoch {trainer.current_epoch}): try a smaller --model.lr, or, without "
                    "--together, --trainer.gradient_clip_val 1."
                )

    def close(self) -> None:
        """Close the files of the curves."""
        for logger in self.loggers:
            logger.finalize("")


def check_recipes(recipes: Sequence[Recipe]) -> None:
    """Check that the runs of each recipe can be trained together.

    Raises:
        UserError: They cannot; the message names the reason and the way out.
    """
    for recipe in recipes:
        check_supported(recipe.name, recipe.options, UNSUPPORTED, "--together", WAY_OUT)
        models = [build(recipe.options)[0] for _ in range(2)]
        size = models[0].hparams["image_size"]
        try:
            StackedBackbones([model.backbone for model in models])(torch.rand(2, 2, 1, size, size)).sum().backward()
        except (RuntimeError, ValueError) as error:  # vmap's, such as for random numbers
            name, reason = type(models[0].backbone).__name__, " ".join(str(error).split())[:200]
            raise UserError(f"{recipe.name}: --together cannot train {name}: {WAY_OUT} ({reason}).") from error


def run_together(folder: Path, runs: list[Run]) -> list[Outcome]:
    """Train the runs of each recipe at once, and measure each of them; a run that fails does not stop the others."""
    recipes = [list(of_recipe) for _, of_recipe in groupby(runs, lambda run: run.recipe.name)]
    return [outcome for of_recipe in recipes for outcome in _run_recipe(folder, of_recipe)]


def _run_recipe(folder: Path, runs: list[Run]) -> list[Outcome]:
    """Train the unfinished runs of a recipe in groups, and measure them."""
    outcomes: dict[int, Outcome] = {}
    images = build(runs[0].options)[1].read("train")
    with contextlib.ExitStack() as stack:
        for index, run in enumerate(runs):
            if saved := stack.enter_context(open_folder(folder, run)):
                outcomes[index] = saved
                report_outcome(run, saved)
        members = {index: _member(run, images) for index, run in enumerate(runs) if index not in outcomes}
        for group in _groups(members):
            try:
                trained = _train(folder, [members[index] for index in group], images)
            except UserError as error:
                trained = [error] * len(group)
            for index, network in zip(group, trained, strict=True):
                try:
                    outcomes[index] = (
                        network if isinstance(network, UserError) else measure(folder, runs[index], network)
                    )
                except UserError as error:
                    outcomes[index] = error
                report_outcome(runs[index], outcomes[index])
    return [outcomes[index] for index in range(len(runs))]


def _groups(members: dict[int, Member]) -> list[list[int]]:
    """The indices of networks that are trained together: with the same number of images, and not too many."""
    sizes = {index: int(member.is_val.sum()) for index, member in members.items()}
    alike = [[index for index in members if sizes[index] == size] for size in sorted(set(sizes.values()))]
    return [group[first : first + MOST_TOGETHER] for group in alike for first in range(0, len(group), MOST_TOGETHER)]


def _member(run: Run, images: Batch) -> Member:
    """Seed the random numbers and build the classifier and the data module, as `mnist-lit fit` does."""
    seed_everything(run.seed, workers=True, verbose=False)
    model, data = build(run.options)
    return Member(run, model, data, torch.get_rng_state(), data.is_val(images[1]))


def _train(folder: Path, networks: list[Member], images: Batch) -> list[Trained | UserError]:
    """Train networks at once, and write the curves, the last checkpoint and the configuration of each run.

    Raises:
        UserError: All of them have failed, for example because there is not enough memory.
    """
    start = time.perf_counter()
    overhead.skip_nan_fill()
    overhead.keep_freed_memory()
    options = networks[0].run.options
    settings = {name: value for name, value in options["model"].items() if name not in ("backbone", "augment")}
    train = torch.stack([(~network.is_val).nonzero().flatten() for network in networks])
    val = torch.stack([network.is_val.nonzero().flatten() for network in networks])
    records = NetworkCurves([network.run.folder(folder) for network in networks])
    with stop_after_batches(), workarounds.silence_warnings(), report_errors(), contextlib.closing(records):
        trainer = _trainer(options["trainer"], records)
        on_cpu = trainer.strategy.root_device.type == "cpu"
        advice = " (faster on a CPU: without --together, or with --ray)" if on_cpu else ""
        print(f"\n{networks[0].run.recipe.name}: {len(networks)} runs together{advice}")
        model = StackedClassifiers(StackedBackbones([network.model.backbone for network in networks]), **settings)
        raw, labels = (part.to(trainer.strategy.root_device) for part in images)
        prepared = varied = DigitDataset(prepare_all(trainer, model, raw), labels)
        if options["data"]["variants"]:
            changed = networks[0].data.vary(*images).to(raw.device)
            varied = DigitDataset(prepare_all(trainer, model, changed), labels)
        states = [network.rng_state for network in networks]
        batches = StackedBatches(varied, train, options["data"]["batch_size"], states)
        trainer.fit(model, batches, StackedBatches(prepared, val, EVAL_BATCH_SIZE))
    seconds = (time.perf_counter() - start) / len(networks)
    is_val = {network.run.fold: network.is_val for network in networks}
    held_out = {fold: DigitDataset(images[0][chosen], images[1][chosen]) for fold, chosen in is_val.items()}
    trained: list[Trained | UserError] = []
    for number, network in enumerate(networks):
        if number in records.errors:
            trained.append(records.errors[number])
            continue
        network.model.backbone.load_state_dict(model.backbone.state_dict_of(number))
        _save(folder, network, trainer)
        accuracy = records.metrics["accuracy/val"][number].item()
        trained.append(Trained(trainer, network.model, train.shape[1], held_out[network.run.fold], accuracy, seconds))
    return trained


def _trainer(options: dict[str, Any], records: NetworkCurves) -> Trainer:
    """The Trainer of a recipe, without logs and checkpoints of its own."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    own = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    given = parser.instantiate(parser.parse_object({"trainer": options | own})).trainer.as_dict()
    callbacks = [*as_list(given["callbacks"]), records, StopAfterBatch()]
    if given["enable_progress_bar"] is not False:
        callbacks.append(ProgressBar())
    return Trainer(**(given | {"callbacks": callbacks, "profiler": given["profiler"] or overhead.NoProfiler()}))


def _save(folder: Path, network: Member, trainer: Trainer) -> None:
    """Write the last checkpoint and the configuration of a run."""
    options = network.run.options
    checkpoint = {
        "epoch": trainer.current_epoch - 1,
        "global_step": trainer.global_step,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": network.model.state_dict(),
        SETTINGS["model"]: {"_instantiator": "lightning.pytorch.cli.instantiate_module", **options["model"]},
        SETTINGS["data"]: {name: options["data"][name] for name in network.data.hparams},
    }
    own_folder = network.run.folder(folder)
    AtomicCheckpointIO().save_checkpoint(checkpoint, own_folder / "checkpoints" / "last.ckpt")
    files.write_atomically(own_folder / "config.yaml", yaml.safe_dump(options, sort_keys=False).encode())
