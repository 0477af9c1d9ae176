"""What a whole fit takes: the callback that `benchmark` hands to a process of its own."""

import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Clock(Callback):
    """Writes down when a fit made its first step and what each validation gave: `clock.json`, in the run's folder."""

    def __init__(self) -> None:
        self.first_step: float | None = None
        self.validations: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Look at the clock after the first step."""
        if self.first_step is None:
            self.first_step = time.time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock and the accuracy."""
        if not trainer.sanity_checking:
            self.validations.append((time.time(), trainer.callback_metrics["val/accuracy"].item()))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it down."""
        folder = Path(trainer.log_dir or os.curdir)  # which all processes ask for at once
        if not trainer.is_global_zero:
            return
        record = {
            "first_step": self.first_step,
            "validations": self.validations,
            "epochs": trainer.current_epoch,
            "train_images": len(trainer.datamodule.splits["train"]),  # type: ignore[attr-defined]
            "peak_memory_gb": _peak_memory_gb(),
            "end": time.time(),
        }
        (folder / "clock.json").write_text(json.dumps(record))


def _peak_memory_gb() -> float:
    """GB of memory that this process held at its peak: of Linux's own count, as the other begins with the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        (peak_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(peak_kib) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
