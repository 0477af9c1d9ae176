"""Three small CNNs that read MNIST digits, trained with Lightning."""

__version__ = "0.1.0"


class UserError(Exception):
    """An error that the user can correct: the command line prints it in one line and exits with 1."""
