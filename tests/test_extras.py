import pytest

from mnist_lit import UserError
from mnist_lit.extras import require


@pytest.mark.parametrize(("written", "line"), [("export", "mnist-lit export ..."), ("--show", "mnist-lit ... --show")])
def test_missing_modules_are_named_with_their_extra(written: str, line: str) -> None:
    require(written, "onnx", "torch", "numpy")
    with pytest.raises(UserError) as error:
        require(written, "onnx", "no_such_1", "torch", "no_such_2")
    expected = f"{written} needs no_such_1, no_such_2: uv run --extra onnx {line} (or: pip install 'mnist-lit[onnx]')"
    assert str(error.value) == expected
