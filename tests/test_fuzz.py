"""Nothing that a stranger hands in runs code, hangs, takes gigabytes, or is answered by more than one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import hostile_checkpoints, hostile_files
from helpers.fuzzing import SECONDS, Fuzz, fuzz

KINDS: dict[str, Callable[[Path], Fuzz]] = {
    "checkpoints, any byte": hostile_checkpoints.damaged_checkpoints,
    "checkpoints, pickles": hostile_checkpoints.pickles,
    "checkpoints, settings": hostile_checkpoints.checkpoint_settings,
    "safetensors": hostile_checkpoints.safetensors_files,
    "MNIST files": hostile_files.mnist_files,
    "pictures": hostile_files.pictures,
    "recipes": hostile_files.recipes,
    "a run's config.yaml": hostile_files.run_configs,
}


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_refused_in_one_line(kind: str, tmp_path: Path, report: Callable[[str], None]) -> None:
    report(f"{kind}: {fuzz(KINDS[kind], tmp_path / 'fuzz')}")
