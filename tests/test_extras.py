import pytest

from mnist_lit import UserError
from mnist_lit.extras import require


def test_missing_modules_are_named_with_their_extra() -> None:
    require("export", "export", "torch", "numpy")
    with pytest.raises(UserError, match=r"export needs no_such_1, no_such_2: uv run --extra onnx mnist-lit export"):
        require("export", "onnx", "no_such_1", "torch", "no_such_2")
