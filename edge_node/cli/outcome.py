"""Name the exit statuses and the one error that verbs raise towards the user."""

from __future__ import annotations

FAILED = 1
USAGE = 2
UNREACHABLE = 3


class CliError(Exception):
    """End the command with a message (what is wrong; what to do) and an exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status
