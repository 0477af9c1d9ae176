"""SIGTERM and Ctrl-C end every command at once, with the exit code that names the signal."""

import signal
from pathlib import Path

import pytest
from helpers.commands import Main, names
from helpers.faults import stall
from helpers.processes import finish, send_signal, start, wait_until


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "compare"])
def test_signal_ends_a_command_in_the_middle_of_a_step(
    command: str, number: signal.Signals, fit_args: list[str], tmp_path: Path
) -> None:
    args = [command, *fit_args[1:]]
    if command in ("validate", "test", "predict"):
        assert finish(start(tmp_path, fit_args)) == 0
        args = [command, "--ckpt_path=last", fit_args[-1]]
    process = start(tmp_path, args, stall)
    wait_until((tmp_path / "stalled").exists, "the second step starts", process=process)
    send_signal(process, number)
    assert finish(process) == 128 + number  # the step would take an hour
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_terminated_fit_exits_with_143(main: Main) -> None:
    with pytest.raises(SystemExit) as end:
        main("fit --trainer.callbacks=helpers.user_code.Terminate")
    assert end.value.code == 143
    assert names() == ["data", "lightning_logs"]
