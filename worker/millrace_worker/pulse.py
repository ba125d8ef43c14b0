"""Where this process stands, for whoever asks: written by the threads that load and compute, read by the server's.

Each value is written by one thread and is one reference, so that a reader needs no lock and can never wait for a step.
"""

from __future__ import annotations

STAGES = ("starting", "importing libraries", "loading the weights")


class Pulse:
    """`progress` counts the steps finished by this process; `stage` is an index of STAGES, or their number once loaded;
    `weights`: how many bytes of them have been read, and how many there are (0: not known)."""

    def __init__(self, generation: int = 0) -> None:
        self.generation = generation
        self.progress = 0
        self.is_computing = False
        self.stage = 0
        self.weights = (0, 0)

    def read(self, done_bytes: int, total_bytes: int) -> None:
        self.weights = (done_bytes, total_bytes)

    @property
    def stage_name(self) -> str:
        """What it does before it can be prepared; then empty."""
        stage = self.stage
        return STAGES[stage] if stage < len(STAGES) else ""
