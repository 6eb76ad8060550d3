"""Errors that tell a person what to do."""


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what was given, what was expected, what to do. The command line
    prints it and exits with code 2.

    Example:
        >>> raise UserError("target rate 1.2: expected a number above 0 and below 1")
        Traceback (most recent call last):
        ...
        aigtool.errors.UserError: target rate 1.2: expected a number above 0 and below 1
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class NonFiniteLossError(ArithmeticError):
    """Training met a loss that is infinite or not a number; the command line exits with code 3."""
