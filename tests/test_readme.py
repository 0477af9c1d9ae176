"""Commands, links, figures and code in all README files."""

import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.readme_tables import BLOCKS, PROMISED, REFERENCE, ROOT, block, mean_and_deviation, read
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mnist_lit import backbones, cli, commands
from mnist_lit.experiments import report
from mnist_lit.run.lightning_cli import run

FOLDERS = ("configs", "lightning_logs/reference", "mnist_lit")
FILES = [ROOT / "README.md", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
README = TEXTS["README.md"]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.DOTALL)
MNIST_LIT = re.compile(
    r"(?:uv run (?:--extra \w+ )?(?:python -m mnist_lit|mnist-lit)|uv run torchrun .*-m mnist_lit) (.+)"
)
LAST = "checkpoints/last.ckpt"


def fenced(language: str, text: str) -> list[str]:
    """Contents of the code blocks in a language."""
    return [content for found, content in FENCED.findall(text) if found == language]


def inline(text: str) -> list[str]:
    """Inline code outside of blocks."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


def shell_lines() -> list[str]:
    """Every command in a shell block or in inline code."""
    lines = [
        line
        for text in TEXTS.values()
        for content in fenced("sh", text)
        for line in content.replace("\\\n", " ").splitlines()
    ]
    lines += [code for text in TEXTS.values() for code in inline(text) if "uv run " in code]
    return [re.sub(r"^\w+=\S+ ", "", line).partition("  #")[0] for line in lines if line]


LINES = sorted(set(shell_lines()))
COMMANDS = sorted({match[1] for line in LINES if (match := MNIST_LIT.fullmatch(line))})


@pytest.fixture
def my_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's own network as an importable file."""
    (source,) = [content for content in fenced("python", README) if "class MyNet" in content]
    (tmp_path / "my_net.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_net", raising=False)


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_main_readme_is_short() -> None:
    assert len(README.split()) <= 1500
    assert len(README.splitlines()) <= 250


def test_every_kind_of_command_is_shown() -> None:
    assert {command.split()[0] for command in COMMANDS} == set(commands.COMMANDS)


@pytest.mark.parametrize("line", [line for line in LINES if not MNIST_LIT.fullmatch(line)])
def test_other_commands_name_existing_files(line: str) -> None:
    if line.startswith(("pip install ", "uv build", "uv venv")):
        return
    words = shlex.split(line)
    program, *args = words[2:] if words[:2] == ["uv", "run"] else words
    assert program in ("mypy", "pytest", "python", "ruff", "sbatch", "tensorboard")
    assert all((ROOT / arg).exists() for arg in args if "/" in arg)


@pytest.mark.usefixtures("in_root", "my_net")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str) -> None:
    name, *given = shlex.split(command)
    options = commands.parse(name, given)
    if isinstance(options, list):  # LightningCLI parses them
        checkpoints = [path for option, path in pairwise(given) if option == "--ckpt_path"]
        line = [word for word in options if word not in ("--ckpt_path", *checkpoints)]  # it may not exist here
    else:
        recipes = options.config or [] if name == "benchmark" else options.names
        changes = [option for change in getattr(options, "change", []) for option in change.split()]
        changes += [f"{vary.partition('=')[0]}=1" for vary in getattr(options, "vary", [])]
        line = ["fit", *(f"--config={file}" for file in recipes), *options.flags, *(f"--{one}" for one in changes)]
        checkpoints = [path for key in ("ckpt_path", "checkpoint") if (path := getattr(options, key, None))]
        checkpoints += getattr(options, "checkpoints", [])
    with pytest.raises(SystemExit) as end:
        cli.main([*line, *([] if "--help" in line else ["--print_config"])])
    assert not end.value.code
    published = {other.split()[-1] for other in COMMANDS if other.startswith("publish")}
    assert all(path in ("last", "best", *published) or "*" in path or Path(path).is_file() for path in checkpoints)


def test_every_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for name in commands.COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
    known = set(re.findall(r"--(?:no-)?[\w.]+", capsys.readouterr().out)) | {"--extra", "--help", "--print_completion"}
    known |= {"--torch-backend"}  # uv's
    options = {option for text in TEXTS.values() for code in inline(text) for option in re.findall(r"--[\w.-]+", code)}
    assert sorted(options - known) == []


@pytest.mark.parametrize("file", TEXTS)
def test_every_link_and_path_exists(file: str) -> None:
    text = TEXTS[file]
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / file).parent / path if path else ROOT / file
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", FENCED.sub("", target.read_text()), re.M) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, link
    for code in inline(text):
        path = code.split("#")[0]
        if re.fullmatch(r"(?:mnist_lit|configs|tests|lightning_logs/reference)/[\w./-]+", path):
            assert (ROOT / path).exists(), code


def test_map_names_every_folder() -> None:
    rows = re.findall(r"^\| \[?`([\w/]+)/`", README.partition("## Folders")[2], re.M)
    assert all((ROOT / path).is_dir() for path in rows)
    rooms = {path.parent.name for path in (ROOT / "mnist_lit").glob("*/*.py")}
    assert rooms <= {Path(path).name for path in rows}


def test_folder_tables_name_every_file() -> None:
    for folder in ("configs", "lightning_logs/reference"):
        names = [path.name for path in (ROOT / folder).iterdir() if path.name != "README.md"]
        for name in names:
            assert f"`{name}" in TEXTS[f"{folder}/README.md"], name


def test_every_generated_table_has_markers() -> None:
    markers = {(name, file) for file, text in TEXTS.items() for name in re.findall(r"<!-- begin (\w+) -->", text)}
    assert markers == {(name, file) for name, (file, _) in BLOCKS.items()}


@pytest.mark.parametrize("name", BLOCKS)
def test_generated_tables_equal_tracked_results(name: str) -> None:
    file, generate = BLOCKS[name]
    match = block(name).search(TEXTS[file])
    assert match
    assert match[0].strip() == generate().strip(), (
        "write them with: PYTHONPATH=tests uv run python -m helpers.readme_tables"
    )


def half_interval(percent: float) -> str:
    """Half of the 95 % interval of an accuracy on the 10,000 test images, in points."""
    low, high = report.wilson(percent / 100, 10_000)
    return f"±{50 * (high - low):.2f}"


def parameter_counts(*, with_norm: bool) -> str:
    """Parameters of the three networks, in words, with or without those of BatchNorm."""
    counts = []
    for model in PROMISED:
        modules = getattr(backbones, model)().modules()
        layers = [module for module in modules if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))]
        counted = [layer for layer in layers if with_norm or not isinstance(layer, nn.BatchNorm2d)]
        counts.append(sum(weights.numel() for layer in counted for weights in layer.parameters()))
    return "{:,}, {:,} and {:,} parameters".format(*counts)


def facts() -> Iterator[tuple[str, str]]:
    """Files, and phrases in them whose figures follow from the code or from tracked results."""
    results, published = read("results.json"), read("results_published.json")
    yield "README.md", parameter_counts(with_norm=True)
    yield "README.md", f"{half_interval(99.25)} points"

    file = "lightning_logs/reference/README.md"
    yield file, parameter_counts(with_norm=False)
    yield file, f"{half_interval(97.49)} points at 97.49 % and {half_interval(99.25)} at 99.25 %"
    missing = [float(PROMISED[model]) - mean_and_deviation(published, model)[0] for model in ("DS_CNN_V2", "DS_CNN_V3")]
    yield file, f"stay {missing[0]:.1f} and {missing[1]:.1f} points below"
    file = "mnist_lit/evaluation/README.md"
    (tracked,) = [run for run in results if (run["model"], run["seed"]) == ("DS_CNN_V3", 42)]
    yield file, f"checkpoint: {100 * tracked['test_accuracy']:.2f}"
    yield file, f"{tracked['multiply_adds']:,} multiply-adds"


def test_figures_in_the_text_equal_tracked_results() -> None:
    missing = [(file, phrase) for file, phrase in facts() if phrase not in " ".join(TEXTS[file].split())]
    assert not missing


def test_robustness_without_distortion_equals_results() -> None:
    plain = {one["model"]: one["accuracies"]["none"][""] for one in read("robustness.json")}
    tracked = {run["model"]: run["test_accuracy"] for run in read("results.json") if run["seed"] == 42}
    assert plain == pytest.approx(tracked)


def printed(source: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    exec(compile(source, "README.md", "exec"), {"__name__": "readme"})
    return capsys.readouterr().out.strip()


def expected(source: str) -> str:
    """Output that the comments behind `print` promise."""
    return "\n".join(re.findall(r"^ *print\(.*\)  # (.*)$", source, re.M))


@pytest.mark.usefixtures("my_net")
def test_own_network_fits_the_data() -> None:
    from my_net import MyNet  # type: ignore[import-not-found]

    assert MyNet(width=20)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.usefixtures("in_root")
def test_python_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = [content for content in fenced("python", README) if "load_classifier" in content]
    assert printed(source, capsys) == expected(source)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's
def test_cross_validation_example_prints_an_accuracy_per_fold(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = fenced("python", TEXTS["mnist_lit/experiments/README.md"])
    accuracies = re.findall(r"tensor\((0\.\d+)\)", printed(source, capsys))
    assert len(accuracies) == 3
    assert all(float(accuracy) > 0.15 for accuracy in accuracies), accuracies  # two epochs without a recipe


@pytest.mark.slow
def test_onnx_example_prints_what_it_says(
    official_mnist: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    (source,) = fenced("python", TEXTS["mnist_lit/evaluation/README.md"])
    checkpoint = str(REFERENCE / "ds_cnn_v3" / LAST)
    cli.main(["export", "--ckpt_path", checkpoint, "--output", "digits.onnx", "--data.data_dir", official_mnist])
    assert printed(source, capsys) == expected(source)


@pytest.mark.slow
@pytest.mark.usefixtures("in_root")
@pytest.mark.parametrize("network", ["ds_cnn_v1", "ds_cnn_v2", "ds_cnn_v3"])
def test_tracked_checkpoints_reach_the_reported_accuracy(network: str, official_mnist: str) -> None:
    folder = REFERENCE / network
    before = {path: path.stat().st_mtime_ns for path in REFERENCE.rglob("*")}
    test = run(["test", "--ckpt_path", str(folder / LAST), "--data.data_dir", official_mnist])
    (reported,) = [result for result in read("results.json") if (result["recipe"], result["seed"]) == (network, 42)]
    reached = test.trainer.callback_metrics["accuracy/test"].item()
    assert reached == pytest.approx(
        reported["test_accuracy"], abs=1.5e-4
    )  # other hardware may classify one digit differently
    assert {path: path.stat().st_mtime_ns for path in REFERENCE.rglob("*")} == before
    curve = EventAccumulator(str(folder)).Reload().Scalars("accuracy/val")
    assert len(curve) == reported["epochs"]
    assert curve[-1].value == pytest.approx(reported["val_accuracy"])
