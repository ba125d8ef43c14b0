"""What the launcher ends with when it cannot go on: the variants, exit codes and printed form of TGI's launcher."""

from __future__ import annotations

from enum import Enum


class Variant(Enum):
    """The value is the name that stands on stderr, which scripts compare."""

    ARGUMENT_VALIDATION = "ArgumentValidation"
    NOT_ENOUGH_DEVICES = "NotEnoughCUDADevices"
    DOWNLOAD = "DownloadError"
    SHARD_CANNOT_START = "ShardCannotStart"
    SHARD_FAILED = "ShardFailed"
    WEBSERVER_CANNOT_START = "WebserverCannotStart"
    WEBSERVER_FAILED = "WebserverFailed"


class UsageError(Exception):
    """The command line or an environment variable does not parse: exit status 2. The message names the flag."""

    exit_code = 2


class LauncherError(Exception):
    """The flags parse, but the launcher cannot do what they say, or a child failed: exit status 1 unless stated."""

    def __init__(self, variant: Variant, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.variant = variant
        self.message = message
        self.exit_code = exit_code

    def printed(self) -> str:
        """As the original prints its errors: `Error: ArgumentValidation("…")`."""
        quoted = self.message.replace("\\", "\\\\").replace('"', '\\"')
        return f'Error: {self.variant.value}("{quoted}")'


def argument_error(message: str) -> LauncherError:
    return LauncherError(Variant.ARGUMENT_VALIDATION, message)
