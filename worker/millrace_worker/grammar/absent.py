"""What stands in for grammars where none can be kept, or where nothing is sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from millrace_worker.proto import worker_pb2


class NoGrammars:
    """As `GrammarRows`, but a row with a grammar fails as soon as a token of it is sampled, with `reason`."""

    def __init__(self, reason: str) -> None:
        self._reason = reason
        self.failures: dict[int, str] = {}

    def admit(self, row: int, sampling: worker_pb2.Sampling, num_prompt_tokens: int, output: list[int]) -> None:  # noqa: ARG002
        self.failures[row] = self._reason

    def clear(self, rows: NDArray) -> None:
        if self.failures:
            for row in rows.tolist():
                self.failures.pop(row, None)

    def begin(self, *_: object) -> None:
        """There is nothing to make."""

    def apply(self, *_: object) -> None:
        """There is nothing to forbid."""

    def advance(self, *_: object) -> None:
        """There is nobody to tell."""
