"""Optional dependencies."""

from importlib.util import find_spec

from mnist_lit import UserError


def require(command: str, extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed.

    Raises:
        UserError: One is missing; the message names the extra.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(
            f"mnist-lit {command} needs {', '.join(missing)}: uv run --extra {extra} mnist-lit {command} ... "
            f"(or: pip install 'mnist-lit[{extra}]')"
        )
