"""Three small CNNs that read MNIST digits, trained with Lightning."""

__version__ = "1.0.0"


def printable(text: object) -> str:
    """A text in one line, without control characters, which a file from somebody else may have brought into it."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


class UserError(Exception):
    """An error that the user can correct: the command line prints it in one line and exits with 1."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))
