import shlex
import sys

import pytest

from mnist_lit import UserError, cli
from mnist_lit.extras import require


@pytest.mark.parametrize(
    ("usage", "needing", "line"),
    [("export", "mnist-lit export", "mnist-lit export ..."), ("--show", "--show", "mnist-lit ... --show")],
)
def test_missing_modules_are_named_with_their_extra(usage: str, needing: str, line: str) -> None:
    require(usage, "onnx", "torch", "numpy")
    with pytest.raises(UserError) as error:
        require(usage, "onnx", "no_such_1", "torch", "no_such_2")
    expected = f"{needing} needs no_such_1, no_such_2: uv run --extra onnx {line} (or: pip install 'mnist-lit[onnx]')"
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("line", "module", "extra"),
    [
        ("read my_photos", "cv2", "photos"),
        ("demo", "cv2", "demo"),
        ("search ds_cnn_v1 --vary model.lr=1..2", "optuna", "search"),
        ("export --ckpt_path last", "onnx", "export"),
    ],
)
def test_a_command_without_its_extra_names_the_extra(
    line: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    words = shlex.split(line)
    with pytest.raises(SystemExit, match=f"{words[0]} needs {module}: uv run --extra {extra} mnist-lit {words[0]}"):
        cli.main(words)
    cli.main(["--version"])
