"""Optional dependencies."""

from importlib.util import find_spec

from mnist_lit import UserError


def require(written: str, extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed.

    Args:
        written: The command or the option that needs them, as a user writes it: `read`, `--data.source sample`.
        extra: The extra.
        modules: Its modules.

    Raises:
        UserError: One is missing; the message names the extra.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        line = f"mnist-lit ... {written}" if written.startswith("-") else f"mnist-lit {written} ..."
        raise UserError(
            f"{written} needs {', '.join(missing)}: uv run --extra {extra} {line} "
            f"(or: pip install 'mnist-lit[{extra}]')"
        )
