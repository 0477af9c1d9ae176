import pytest

from mnist_lit import UserError
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
