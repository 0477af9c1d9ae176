"""Help, version and completion are quick and complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_lit
from mnist_lit import cli
from mnist_lit.commands import COMMANDS, FIT_OPTIONS, LIGHTNING_HELP, LIGHTNING_HELP_FILES, parse

ROOT = Path(mnist_lit.__file__).parents[1]


def environment() -> dict[str, str]:
    """The environment of a process that finds this package from any folder."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("args", ["--help", "--version", ""])
def test_help_and_version_import_no_torch(args: str) -> None:
    code = f"import sys; from mnist_lit.cli import main; main({args.split()}); assert 'torch' not in sys.modules"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == f"mnist-lit {mnist_lit.__version__}\n" if args == "--version" else "compare" in printed


def test_help_and_errors_of_own_parsers_import_no_torch() -> None:
    own = [command for command, (module, _) in COMMANDS.items() if module != "mnist_lit.run.lightning_cli"]
    assert len(own) >= 7
    lines = [*([command, "--help"] for command in own), ["export", "--format=onnx"], ["publish", "a", "b", "--c"]]
    code = "import contextlib, sys\nfrom mnist_lit.cli import main\n"
    code += f"for line in {lines}:\n    with contextlib.suppress(SystemExit):\n        main(line)\n"
    code += "print(sorted({'torch', 'lightning', 'numpy'} & sys.modules.keys()))"
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert process.stdout.count("usage: ") == len(own)
    assert process.stdout.endswith("\n[]\n")
    assert "--ckpt_path" in process.stderr.splitlines()[0]
    assert "unrecognized arguments: --c;" in process.stderr.splitlines()[1]


def test_options_of_fit_are_not_taken_for_misspelled_ones() -> None:
    for option in FIT_OPTIONS:
        for line in (["compare", "a.yaml"], ["search", "a.yaml", "--vary", "model.lr=[1]"], ["benchmark"]):
            options = parse(line[0], [*line[1:], option, "x"])
            assert option in options.given


def test_completion_script_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh"):
        cli.main(["--print_completion", shell])
        assert f"-W '{' '.join(COMMANDS)}' mnist-lit" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="takes bash or zsh"):
        cli.main(["--print_completion", "fish"])


def test_help_names_files_that_exist_where_it_is_printed(tmp_path: Path) -> None:
    lines = [
        [],
        *([command, "--help"] for command in COMMANDS if COMMANDS[command][0] != "mnist_lit.run.lightning_cli"),
    ]
    code = "import contextlib\nfrom mnist_lit.cli import main\n"
    code += f"for line in {lines}:\n    with contextlib.suppress(SystemExit):\n        main(line)\n"
    for folder in (tmp_path, ROOT):
        process = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=folder, env=environment()
        )
        files = re.findall(r"[^\s()]*(?:configs|reference)/[\w./]+", process.stdout)
        assert len(files) >= 2
        assert [file for file in files if not (folder / file).is_file()] == []


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse shows short and long options differently")
@pytest.mark.parametrize("command", LIGHTNING_HELP)
def test_stored_help_is_that_of_the_parser(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    printed = []
    for args in (["--help"], ["--help", "--help"]):  # the second one asks the parser
        with pytest.raises(SystemExit) as end:
            cli.main([command, *args])
        assert not end.value.code
        printed.append(capsys.readouterr().out)
    file = (LIGHTNING_HELP_FILES / f"{command}.txt").relative_to(ROOT)
    # typing caches a union with the order of its first use, which in a test may be any
    stored, parsed = (" ".join(text.split()).replace("float, int", "int, float") for text in printed)
    assert stored == parsed, f"update it: COLUMNS=80 uv run mnist-lit {command} --help --help > {file}"


@pytest.mark.parametrize(
    ("environment", "note"), [({}, "Loading PyTorch and Lightning ..."), ({"LOCAL_RANK": "1"}, "")]
)
def test_terminal_shows_that_the_program_loads(
    environment: dict[str, str], note: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit, match="nothing"):
        cli.main(["publish", "nothing.ckpt", "nothing.safetensors"])
    assert capsys.readouterr().err == (f"{note}\r{' ' * len(note)}\r" if note else "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert not end.value.code
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"[Ee]xamples?:? mnist-lit {command}", printed)
