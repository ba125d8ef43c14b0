"""The parity of every architecture, natively and through the Transformers backend, on one and on two ranks: prints a
table, writes docs/models.md, and fails when anything is red. `make models`; with ARGS="llama gpt2" only some types."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.models.choice import ModelAsk, choose, load
from millrace_worker.models.hf_config import ConfigError
from millrace_worker.models.sharding import ShardingError
from transformers.utils import logging

from .cases import CASES, VOCAB, Case
from .checkpoints import Saved, save
from .paged import run
from .parity import TOLERANCE, Trial
from .rank_group import Job, RankGroup, RefusedError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"
NATIVE, BACKEND = "native", "transformers"
ROWS_TOLERANCE = 1e-3  # transformers' own caches are less exact than its forward pass over a whole sequence
MARKERS = ("<!-- table -->", "<!-- end of table -->")


@dataclass
class Row:
    """What one architecture has shown: the greatest difference by implementation and number of ranks."""

    architecture: str
    model_type: str
    found: dict[tuple[str, int], float] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    red: list[str] = field(default_factory=list)

    def add(self, place: tuple[str, int], difference: float) -> None:
        self.found[place] = max(difference, self.found.get(place, 0.0))

    def cells(self) -> list[str]:
        cells = [f"`{self.architecture}`", f"`{self.model_type}`"]
        for implementation in (NATIVE, BACKEND):
            ranks = [str(size) for name, size in sorted(self.found) if name == implementation]
            cells.append(", ".join(ranks) or "–")
        most = max(self.found.values(), default=torch.inf)
        return [*cells, exactness(most), "; ".join(self.notes)]


def exactness(difference: float) -> str:
    """In steps that do not flap."""
    return next((f"≤ {text}" for step, text in ((1e-4, "1e-4"), (1e-3, "1e-3")) if difference <= step), "red")


def one_rank(saved: Saved, trial: Trial, implementation: str) -> tuple[list[torch.Tensor], bool]:
    """The logits, and whether sequences lie in pages."""
    ask = ModelAsk(
        folder=saved.folder,
        dtype=torch.float32,
        device=torch.device("cpu"),
        group=Group(),
        kernels=cpu_kernels.find("", 1),
    )
    model = load(ask, choose(saved.folder, implementation))
    return run(model, seed=3).logits(trial.sequences, trial.prompts), model.page_size > 0


def measure(name: str, case: Case, row: Row, saved: Saved, ranks: dict[int, RankGroup]) -> None:
    sequences = [torch.randint(VOCAB, (length,)).tolist() for length in (15, 16, 17, 1, 33, 63)]
    trial = Trial.of(saved, sequences)
    if case.note:
        row.notes[case.note] = None
    for implementation in (NATIVE,) * case.native + (BACKEND,) * case.backend:
        paged = True
        for size in case.ranks:
            if implementation == BACKEND and size > (2 if paged else 1):
                continue
            try:
                if size == 1:
                    found, paged = one_rank(saved, trial, implementation)
                else:
                    job = Job(saved.folder, trial.sequences, trial.prompts, model_impl=implementation)
                    found = ranks[size].logits(job)
            except (ConfigError, ShardingError, RefusedError) as refused:
                if implementation == NATIVE:
                    row.red.append(f"{name}, {implementation}, {size} ranks: {refused}")
                elif size == 1:
                    row.notes["the backend refuses it"] = None
                print(f"{name:45} {implementation:13} {size} ranks  refused: {refused}", flush=True)
                continue
            except Exception as error:  # whatever it is, the table goes on and shows it
                row.red.append(f"{name}, {implementation}, {size} ranks: {type(error).__name__}: {error}")
                continue
            difference = trial.difference(found)
            row.add((implementation, size), difference)
            if not paged and implementation == BACKEND:
                row.notes["the backend runs it with a cache per sequence"] = None
            if difference > (TOLERANCE if paged else ROWS_TOLERANCE) or not trial.same_ids(found):
                row.red.append(f"{name}, {implementation}, {size} ranks: {difference:.1e}")
            print(f"{name:45} {implementation:13} {size} ranks  {difference:.1e}", flush=True)


def page(rows: list[Row]) -> str:
    head = ["architecture", "model type", "native, ranks", "backend, ranks", "logits", "notes"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in sorted(rows, key=lambda row: row.model_type))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write(table: str) -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    PAGE.write_text(f"{before}{MARKERS[0]}\n{table}\n{MARKERS[1]}{after}", encoding="utf-8")


def main(wanted: list[str]) -> int:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    rows: dict[str, Row] = {}
    cases = {name: case for name, case in CASES.items() if not wanted or case.model_type in wanted}
    with tempfile.TemporaryDirectory() as scratch:
        ranks = {size: RankGroup(size, Path(scratch)) for size in (2, 4)}
        try:
            for index, (name, case) in enumerate(cases.items()):
                saved = save(Path(scratch) / str(index), case)
                (architecture,) = json.loads((saved.folder / "config.json").read_text())["architectures"]
                row = rows.setdefault(case.model_type, Row(architecture, case.model_type))
                measure(name, case, row, saved, ranks)
        finally:
            for group in ranks.values():
                group.close()
    table = page(list(rows.values()))
    print(table)
    red = [line for row in rows.values() for line in row.red]
    print("\n".join(["", *(f"RED {line}" for line in red), f"{len(cases)} checkpoints, {len(red)} red"]))
    if not wanted and not red:
        write(table)
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
