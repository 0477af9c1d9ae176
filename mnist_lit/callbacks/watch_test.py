"""Draw the test accuracy after each epoch, as a curve that nothing depends on."""

from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.metrics import StageMetrics


class WatchTest(Callback):
    """Measure the test set after each epoch of training.

    The metrics go to the loggers only: no callback can monitor them to choose an epoch or a learning rate.
    """

    def __init__(self) -> None:
        self.metrics = StageMetrics("test")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.data = getattr(trainer, "datamodule", None)
        if isinstance(self.data, MNISTDataModule):
            self.data.setup("test")
        self.metrics.to(trainer.strategy.root_device)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not at its end, when a callback that averages weights has put those of training back
        if trainer.sanity_checking or not isinstance(self.data, MNISTDataModule):
            return
        self.metrics.reset()
        for images, labels in self.data.test_dataloader():
            with trainer.precision_plugin.val_step_context():
                self.metrics.update(pl_module(images), labels)
        metrics = {tag: value.item() for tag, value in self.metrics.compute().items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step - 1)  # the step of the validation's metrics
