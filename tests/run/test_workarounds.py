"""The private names and messages of libraries that workarounds and tricks rely on."""

import logging
import platform
import resource
import warnings

import pytest
import torch
from jsonargparse import ArgumentParser, _common
from lightning.pytorch import Trainer
from torch import nn

from mnist_lit import UserError
from mnist_lit.run import overhead, workarounds


def test_private_names_of_lightning_exist() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    connector, loop = trainer._signal_connector, trainer.fit_loop.epoch_loop
    before = connector._sigterm_notifier_fn, loop._broadcast_sigterm_tensor
    workarounds.stop_sigterm_broadcast(trainer)
    assert connector._sigterm_notifier_fn != before[0]
    assert loop._broadcast_sigterm_tensor != before[1]


def test_import_limit_ends_with_its_context() -> None:
    before = dict(_common.parsing_settings)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--net", type=nn.Module)
    foreign = ["--net=lightning.pytorch.LightningModule"]
    with workarounds.limit_imports(["lightning.pytorch"]):
        parser.parse_args(foreign)
    with workarounds.limit_imports([]):
        parser.parse_args(["--net=torch.nn.Identity"])
        with pytest.raises(Exception, match=r"Importing 'lightning\.pytorch\.LightningModule' is not allowed"):
            parser.parse_args(foreign)
    assert _common.parsing_settings == before
    parser.parse_args(foreign)


def test_trusted_names_must_be_import_paths() -> None:
    with pytest.raises(UserError, match="--trust takes packages or modules, as Python imports them, not a-b"):
        workarounds.limit_imports(["a-b"]).__enter__()


def test_useless_warnings_and_messages_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with workarounds.silence_warnings():
        warnings.warn("The dirpath has changed from 'a' to 'b'", stacklevel=1)  # else an error under pytest
        logger.warning("Restoring states from the checkpoint path at a.ckpt")
        logger.warning("something new")
    assert [record.getMessage() for record in caplog.records] == ["something new"]


def test_memory_is_not_filled_with_nan() -> None:
    settings = torch.utils.deterministic
    assert hasattr(settings, "fill_uninitialized_memory")
    overhead.skip_nan_fill()
    assert settings.fill_uninitialized_memory is False


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_of_large_tensors_is_reused() -> None:
    pages = 48 * 2**20 // resource.getpagesize()
    overhead.keep_freed_memory()
    torch.ones(pages * resource.getpagesize() // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(pages * resource.getpagesize() // 4)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 12 * pages  # without the setting 20 times as many; other tests fragment the memory


def test_profiler_does_nothing() -> None:
    profiler = overhead.NoProfiler()
    with profiler.profile("step"), profiler.profile("step"):
        pass
    assert profiler.summary() == ""
