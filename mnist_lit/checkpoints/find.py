"""Find the checkpoint that a user names: a file, or `last` or `best` of the newest run."""

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from mnist_lit import UserError
from mnist_lit.checkpoints.io import load_exactly, neighbors
from mnist_lit.files import LOGS, expand


def find_checkpoint(name: str, logs: Path = Path(LOGS), backbone: str | None = None, to_resume: bool = False) -> Path:
    """Resolve a name to a file; for `last` and `best`, the path is printed.

    If that file is damaged, the newest intact one of the same run is used.

    Args:
        name: A file, or "last" or "best" of the newest run.
        logs: Folder of runs.
        backbone: Class path of the network that the run must have, or None for any.
        to_resume: Whether the run will be resumed: a checkpoint before the first step is accepted, and runs of
            comparisons and searches, whose results would change, are not.

    Raises:
        UserError: No run has such a checkpoint, or all of its checkpoints are damaged.
    """
    if name not in ("last", "best"):
        return expand(name)
    excluded = {logs / folder for folder in (("reference", "compare", "search") if to_resume else ("reference",))}
    candidates = [path for path in logs.glob(f"**/checkpoints/{name}.ckpt") if not excluded & set(path.parents)]
    for candidate in sorted(candidates, key=lambda path: path.stat().st_mtime, reverse=True):
        path, checkpoint = _first_intact(candidate)
        network = checkpoint.get("hyper_parameters", {}).get("backbone")
        has_backbone = isinstance(network, dict) and network.get("class_path") == backbone
        if (backbone is None or has_backbone) and (to_resume or checkpoint["global_step"]):
            rank_zero_only(print)(f"{name}: {path}")
            return path
    of_network = f" of {backbone.rpartition('.')[2]}" if backbone else ""
    raise UserError(f"{name}: there is no checkpoint of a run{of_network} in {logs}. Run mnist-lit fit first.")


def _first_intact(path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint, or the newest intact one beside it, with its content."""
    for candidate in (path, *neighbors(path)):
        try:
            return candidate, load_exactly(candidate)
        except UserError as error:
            rank_zero_only(print)(error)
    raise UserError(f"All checkpoints in {path.parent} are damaged: name one of another run, or start a new one.")
