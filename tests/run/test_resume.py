"""A stopped, interrupted or killed run resumes and ends like an uninterrupted one, bit for bit."""

import json
import random
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import CONFIGS, LAST, RUN, SMALL, Main, error_line, names
from helpers.faults import load_in_workers, stall, wait_briefly_for_locks
from helpers.processes import FULL, duration_s, finish, kill, send_signal, start, wait_until
from helpers.runs import curves, differences, only, picture_steps, state, untimed

from mnist_lit import cli
from mnist_lit.checkpoints.io import load

KILLS = 10 if FULL else 1
MORE = ["--model.augment=RandomAffineBatch", "--model.backbone.dropout=0.2"]
RECIPES: dict[str, tuple[str, list[str], list[Callable[[], None]]]] = {
    "ds_cnn_v1": ("ds_cnn_v1", [], [load_in_workers]),
    "ds_cnn_v2": ("ds_cnn_v2", [], []),
    "ds_cnn_v3": ("ds_cnn_v3", [*MORE, "--trainer.callbacks=EMAWeightAveraging"], []),
    "published": ("published", [], []),
    "everything": ("ds_cnn_v1", [*MORE, "--trainer.callbacks=EMAWeightAveraging"], [load_in_workers]),
}
INTERRUPT = "helpers.user_code.Interrupt"
TRUST = ["--trust", "helpers.user_code"]


@pytest.mark.parametrize("schedule", ["one_cycle", "plateau"])
def test_interrupted_run_resumes_as_if_uninterrupted(
    main: Main, capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    fit = f"fit --trainer.max_epochs=3 {' '.join(MORE)} --model.schedule={schedule}"
    main(fit)
    with pytest.raises(SystemExit, match="130"):
        main(f"{fit} --trainer.callbacks={INTERRUPT}")
    run = RUN.with_name("version_1")
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    config = (run / "config.yaml").read_text()
    hint = f"mnist-lit fit --ckpt_path {run}/checkpoints/last.ckpt {' '.join(TRUST)}"
    assert hint in capsys.readouterr().out
    cli.main(["fit", "--ckpt_path", "last", *TRUST])  # all other options come from the run
    assert names(RUN.parent) == ["version_0", "version_1"]
    assert (run / "config.yaml").read_text() == config
    assert differences(state(run), state(RUN)) == []
    assert picture_steps(run, "pictures/filters") == [0, 15]  # of the whole training, not of its second part
    assert str(Path.cwd()) not in str(load(LAST)["callbacks"])  # a checkpoint holds no paths of the machine
    if schedule == "one_cycle":
        message = error_line(main, f"fit --ckpt_path last --trainer.max_epochs=5 {' '.join(TRUST)}", capsys)
        assert re.search(r"15 steps.* 25", message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "all 2 epochs"),
        ("--trainer.max_steps=7", "all 7 steps"),
        ("--model.schedule=plateau", r"all 2 epochs.* larger --trainer\.max_epochs"),
    ],
)
def test_finished_run_is_not_resumed(main: Main, options: str, message: str) -> None:
    main(f"fit {options}")
    before = {path: path.stat().st_mtime_ns for path in Path("lightning_logs").rglob("*.*")}
    with pytest.raises(SystemExit, match=message):
        cli.main(["fit", "--ckpt_path", "last"])
    assert {path: path.stat().st_mtime_ns for path in Path("lightning_logs").rglob("*.*")} == before
    if "plateau" in options:
        cli.main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"])
        assert torch.load(LAST, weights_only=True)["epoch"] == 2


def test_best_checkpoint_stays_best_if_resumed_from_another_folder(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="130"):  # the first epoch stays the best at this learning rate
        main(f"fit --model.lr=1e-9 --trainer.max_epochs=3 --trainer.callbacks={INTERRUPT}")
    root = Path.cwd()
    monkeypatch.chdir(RUN / "checkpoints")
    cli.main(["fit", "--ckpt_path=last.ckpt", f"--data.data_dir={root / 'data'}", *TRUST])
    assert names(root / RUN.parent) == ["version_0"]
    epochs = [
        torch.load(root / RUN / f"checkpoints/{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")
    ]
    assert epochs == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signaled_run_resumes_as_if_uninterrupted(number: signal.Signals, fit_args: list[str], tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    assert finish(start(whole, fit_args)) == 0
    process = start(stopped, fit_args)
    wait_until(lambda: list(stopped.rglob("best.ckpt")), "the run saves a checkpoint", process=process)
    send_signal(process, number)
    assert finish(process) == 128 + number
    (run,) = stopped.rglob("version_0")
    step = load(only(stopped, "last.ckpt"))["global_step"]
    assert [at for at, _ in curves(run)["accuracy/val"]][: step // 25] == [*range(24, step, 25)]
    assert "mnist-lit fit --ckpt_path" in (stopped / "out").read_text()
    assert "Received" not in (stopped / "err").read_text()  # Lightning's message
    assert finish(start(stopped, ["fit", "--ckpt_path=last"])) == 0
    assert differences(state(stopped), state(whole)) == []


@pytest.mark.slow
def test_run_is_not_resumed_while_a_process_trains_it(fit_args: list[str], tmp_path: Path) -> None:
    training = start(tmp_path, fit_args, stall)
    wait_until((tmp_path / "stalled").exists, "the run starts", process=training)
    resume = ["fit", "--ckpt_path=last"]
    assert finish(start(tmp_path, resume, wait_briefly_for_locks, name="_early")) == 1
    message = f"process {training.pid} on {socket.gethostname()} still uses {RUN} after 1 s: let it end, or stop it"
    assert message in (tmp_path / "err_early").read_text()
    kill(training)
    assert finish(start(tmp_path, resume)) == 0
    assert not list(tmp_path.rglob(".lock"))


@pytest.mark.slow
@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.parametrize("case", RECIPES)
def test_killed_run_resumes_as_if_uninterrupted(
    case: str, fit_args: list[str], tmp_path: Path, report: Callable[[str], None]
) -> None:
    recipe, options, setup = RECIPES[case]
    epochs = 8 if FULL else 4
    args = ["fit", f"--config={CONFIGS / recipe}.yaml", *fit_args[1:], f"--trainer.max_epochs={epochs}", *options]
    whole = tmp_path / "whole"
    whole.mkdir()
    whole_s = duration_s(whole, args, *setup)
    moments = random.Random(case)
    steps: list[int | None] = []
    for number in range(KILLS):
        killed = tmp_path / str(number)
        killed.mkdir()
        process = start(killed, args, *setup)
        if number == 0:  # the first kill hits the second epoch or a later one, the others any time
            wait_until(lambda: list(killed.rglob("best.ckpt")), "the first epoch ends", process=process)  # noqa: B023
            time.sleep(moments.uniform(0, 0.3) * whole_s)
        else:
            time.sleep(moments.uniform(0.3, 1.0) * whole_s)
        kill(process)
        saved = list(killed.rglob("last.ckpt"))
        steps.append(load(saved[0])["global_step"] if saved else None)
        code = finish(start(killed, ["fit", "--ckpt_path=last"] if saved else args, *setup))
        assert code == 0 or steps[-1] == state(whole)[0]["global_step"]  # killed at its very end
        run = only(killed, "last.ckpt").parent.parent if saved else max(killed.rglob("version_*"))
        assert differences(state(run), state(whole)) == [], steps
    report(f"{case}: killed {KILLS} times, resumed from steps {steps}: all {KILLS} bitwise equal, curves too")


@pytest.mark.slow
@pytest.mark.timeout(1800 if FULL else 300)
def test_killed_comparison_resumes_as_if_uninterrupted(
    tiny_mnist: Path, tmp_path: Path, report: Callable[[str], None]
) -> None:
    args, count = ["compare", *SMALL, f"--data.data_dir={tiny_mnist}"], 5 if FULL else 1
    folders = [tmp_path / str(number) for number in range(count + 1)]
    for folder in folders:
        folder.mkdir()
    whole_s, moments = duration_s(folders[0], args), random.Random(0)
    for folder in folders[1:]:
        process = start(folder, args)
        time.sleep(moments.uniform(0.3, 0.9) * whole_s)
        kill(process)
        if not list(folder.rglob("results.json")):
            has_begun = bool(list(folder.rglob("plan.json")))
            assert finish(start(folder, [*args, "--resume"] if has_begun else args)) == 0
    expected = untimed(only(folders[0], "results.json"))
    for folder in folders[1:]:
        assert untimed(only(folder, "results.json")) == expected
        for path in folders[0].rglob("last.ckpt"):
            other = folder / path.relative_to(folders[0])
            assert differences(state(other.parent.parent), state(path.parent.parent)) == []
    report(f"compare: killed {count} times, then resumed: tables, checkpoints and curves bitwise equal")


@pytest.mark.slow
def test_comparison_resumed_twice_at_once_trains_each_run_once(tiny_mnist: Path, tmp_path: Path) -> None:
    recipe = str(CONFIGS / "ds_cnn_v1.yaml")
    args = ["compare", recipe, "--seeds=3", *SMALL, f"--data.data_dir={tiny_mnist}"]
    process = start(tmp_path, args)
    wait_until(lambda: list(tmp_path.rglob("best.ckpt")), "the first run trains", process=process)
    kill(process)
    both = [start(tmp_path, [*args, "--resume"], name=str(number)) for number in range(2)]
    assert [finish(process) for process in both] == [0, 0]
    results = json.loads(only(tmp_path, "results.json").read_text())
    assert [result["seed"] for result in results] == [42, 43, 44]
    trained = "".join((tmp_path / f"err{number}").read_text() for number in range(2))
    assert trained.count("GPU available") == 3  # each training says so
