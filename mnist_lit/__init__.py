"""Three small CNNs that read MNIST digits, trained with Lightning."""

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake that the user can mend: the command line prints its one line, without a traceback, and exits with 1."""
