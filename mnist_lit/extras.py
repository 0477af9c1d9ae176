"""Optional dependencies."""

from importlib.util import find_spec

from mnist_lit import UserError


def require(usage: str, extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed.

    Args:
        usage: The command or the option that needs them, as a user writes it: `read`, `--data.source sample`.
        extra: The extra.
        modules: Its modules.

    Raises:
        UserError: One is missing; the message names the extra.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        needing = usage if usage.startswith("-") else f"mnist-lit {usage}"
        line = f"mnist-lit ... {usage}" if usage.startswith("-") else f"{needing} ..."
        raise UserError(
            f"{needing} needs {', '.join(missing)}: uv run --extra {extra} {line} "
            f"(or: pip install 'mnist-lit[{extra}]')"
        )
