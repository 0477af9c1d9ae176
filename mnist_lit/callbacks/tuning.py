"""Lightning's finders of the batch size and of the learning rate."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from mnist_lit import UserError


class Tuning(Callback):
    """Run Lightning's finders, then configure the optimizer again, because its schedule depends on what they found.

    Lightning (2.6.6) sets `batch_size` and `lr` after it has configured the optimizer.

    Args:
        finders: The user's finders, in their order.
    """

    def __init__(self, finders: list[BatchSizeFinder | LearningRateFinder]) -> None:
        self.finders = finders

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for finder in self.finders:
            finder.setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the values.

        Raises:
            UserError: No learning rate was found.
        """
        if trainer.ckpt_path:  # the checkpoint of a resumed run holds the values
            return
        for finder in self.finders:
            trainer.strategy.lr_scheduler_configs = []  # the trials may take more steps than the run
            finder.on_fit_start(trainer, pl_module)
            found = finder.optimal_lr if isinstance(finder, LearningRateFinder) else None
            if found and found.suggestion() is None:
                raise UserError(
                    "LearningRateFinder has found no learning rate: train for more steps, or leave it out and give "
                    "--model.lr."
                )
            trainer.strategy.setup_optimizers(trainer)
            trainer.ckpt_path = None  # not resumed: the finder has restored the state before its trials
