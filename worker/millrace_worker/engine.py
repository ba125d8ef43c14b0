"""The engine of one rank: `compute(plan)` admits, builds the inputs, runs forward, samples and answers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from millrace_worker import logs
from millrace_worker.answer import NO_TOKEN, Stopwatch, add_failure, add_prompt_logprobs, add_tokens
from millrace_worker.distributed import Outcome, RankGoneError
from millrace_worker.grammar import GrammarRows, NoGrammars
from millrace_worker.inputs import InputBuilder
from millrace_worker.model import in_rows, paged
from millrace_worker.proto import worker_pb2
from millrace_worker.rows import Rows, RowsShape
from millrace_worker.runner import Runner
from millrace_worker.sampling import SamplingRows, Watermark
from millrace_worker.shortage import drop_references, is_out_of_memory, release_memory
from millrace_worker.work import PlanError, WorkReader, column

if TYPE_CHECKING:
    from collections.abc import Iterable

    from millrace_worker.cpu_kernels import Machine
    from millrace_worker.distributed import Group
    from millrace_worker.grammar import Vocabulary
    from millrace_worker.model import Model
    from millrace_worker.work import Column, Flags, Work

OUT_OF_MEMORY = "the device ran out of memory in this step"
SEE_LOG = "the server's log has the details"


class RankLostError(RuntimeError):
    """This process cannot go on: its device is gone, or one of several ranks is out of step. Start all ranks afresh."""


@dataclass(frozen=True)
class EngineParts:
    """What a loaded rank has before rows and pool are sized. `vocabulary`: on the rank that samples, where its model
    can be held to grammars. `kernels`: this CPU's, where there are any."""

    model: Model
    group: Group
    device: torch.device
    watermark: Watermark
    vocabulary: Vocabulary | None = None
    kernels: Machine | None = None


@dataclass(frozen=True)
class StepFault:
    """What the router is told of a step that failed. `message` is for the client too."""

    outcome: Outcome
    message: str


class Engine:
    """Rows of one shape over one model whose store is allocated. Not thread-safe: one thread computes at a time."""

    def __init__(self, parts: EngineParts, shape: RowsShape) -> None:
        self.shape = shape
        self._group = parts.group
        self._model = parts.model
        sampling = SamplingRows(shape.max_rows, parts.device, parts.watermark, parts.kernels)
        grammars = NoGrammars("this worker cannot hold its model to grammars")
        if shape.grammars and parts.vocabulary is not None:
            grammars = GrammarRows(shape.max_rows, parts.vocabulary, shape.vocab_size, sampling.workspace)
        self._rows = Rows(shape, sampling, parts.device, grammars)
        self._reader = WorkReader()
        self._inputs = InputBuilder(self._rows)
        self._runner = Runner(parts.model, self._rows, parts.group)
        self._progress = 0

    def reset(self) -> None:
        """A new stream begins: no row is held."""
        self._group.begin_stream()
        self._rows.reset()
        self._forget(range(self.shape.max_rows))

    @torch.inference_mode()
    def compute(self, plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
        """One forward pass. A fault fails the sequences of this plan, by id, and the stream lives on.

        Raises RankLostError when that is not possible: with several ranks that cannot be kept in step (the others may
        wait in a collective), or when the device itself is gone.
        """
        self._group.begin_step()
        outcome = self._agree(self._try(plan))
        # An error is gone by now, and with it what its frames held.
        result = self._failed_step(plan, outcome) if isinstance(outcome, StepFault) else outcome
        self._progress += 1
        result.progress = self._progress
        return result

    def _try(self, plan: worker_pb2.StepPlan) -> worker_pb2.StepResult | StepFault:
        try:
            return self.step(plan)
        except Exception as error:
            if isinstance(error, RankGoneError) or not self._group.stays_in_step or _device_is_gone(error):
                raise RankLostError(f"step {plan.step} failed: {type(error).__name__}: {error}") from error
            fault = StepFault(_outcome(error), _message(error))
            if fault.outcome is not Outcome.LEFT:  # the rank that it left for tells why
                logs.error("a step failed", step=plan.step, error=f"{type(error).__name__}: {error}")
            drop_references(error)
            return fault

    def _agree(self, own: worker_pb2.StepResult | StepFault) -> worker_pb2.StepResult | StepFault:
        """A step that has failed on one rank has failed on all: what each of them holds must stay the same."""
        outcome = own.outcome if isinstance(own, StepFault) else Outcome.DONE
        worst, rank = self._group.end_step(outcome)
        if worst == outcome:
            return own
        message = OUT_OF_MEMORY if worst is Outcome.SHORT else f"the step failed on rank {rank}; {SEE_LOG}"
        return StepFault(worst, message)

    def abandon(self) -> None:
        """Nobody waits for the steps of this stream any more. Any thread may say so."""
        self._group.abandon()

    def step(self, plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
        """As `compute`, but a fault of the step raises."""
        result = worker_pb2.StepResult(step=plan.step)
        watch = Stopwatch(result.timings)
        work = self._reader.read(plan)
        living = self._admit(plan, work)
        running = work if living is None else work.select(living)
        if len(running.starts):
            inputs = self._inputs.build(running)
            watch.lap("inputs_us")
            forwarded = self._runner.forward(inputs)
            watch.lap("forward_us")
            sampled = self._runner.sample(forwarded.logits, inputs)
            self._rows.note_computed(running)
            if self._group.rank == 0 and inputs.prompt and forwarded.prompt is not None:
                add_prompt_logprobs(result, inputs.prompt, living, forwarded.prompt)
        else:
            sampled = None
            watch.lap("inputs_us")
        if self._group.rank == 0:
            add_tokens(result, work, self._rows, living, sampled)
            self._add_failures(result, plan, work.layout.rows)
        watch.lap("sample_us")
        watch.stop()
        return result

    @torch.inference_mode()
    def trial(self, plan: worker_pb2.StepPlan) -> None:
        """Computes a plan to see what it takes: nothing is answered, every fault raises, also that of another rank."""
        self._group.begin_stream()
        self._group.begin_step()
        outcome = Outcome.FAILED
        try:
            self.step(plan)
            outcome = Outcome.DONE
        finally:
            worst, rank = self._group.end_step(outcome)
        if worst is not Outcome.DONE:
            raise RuntimeError(f"it failed on rank {rank}: its log says why")
        if self._rows.failures:
            raise PlanError(next(iter(self._rows.failures.values())))

    def _admit(self, plan: worker_pb2.StepPlan, work: Work) -> Flags | None:
        """Rows, page tables and copied pages as the plan says; which work entries belong to living sequences."""
        rows = self._rows
        rows.apply(plan)
        if plan.released:
            self._forget(column(plan.released).tolist())
        if plan.copies.sources:
            self._copy_pages(column(plan.copies.sources), column(plan.copies.targets))
        living = rows.living(work)
        rows.check_work(work if living is None else work.select(living))
        return living

    def _forget(self, rows: Iterable[int]) -> None:
        if not self._model.page_size:
            in_rows(self._model).forget_rows(rows)

    def _copy_pages(self, sources: Column, targets: Column) -> None:
        if len(sources) != len(targets):
            raise PlanError(f"{len(sources)} pages to copy to {len(targets)} pages")
        beyond = max(sources.max(), targets.max())
        if beyond >= self.shape.num_pages:
            raise PlanError(f"copy of page {beyond}, but the pool has {self.shape.num_pages}")
        device = self._rows.device
        paged(self._model).copy_pages(torch.from_numpy(sources).to(device), torch.from_numpy(targets).to(device))

    def _failed_step(self, plan: worker_pb2.StepPlan, fault: StepFault) -> worker_pb2.StepResult:
        """Every sequence of the plan has failed: their rows take no part until they are released. The router tries them
        again, in halves or in smaller steps."""
        is_short = fault.outcome is Outcome.SHORT
        if is_short:
            release_memory(self._rows.device)
        self._release_again(plan)
        result = worker_pb2.StepResult(step=plan.step, whole_step=True, out_of_memory=is_short)
        working = plan.work.rows[: len(plan.work.rows) // 4 * 4]  # the plan itself may be what is wrong
        self._rows.fail(plan.admitted, column(working), fault.message)
        self._add_failures(result, plan, column(working))
        named = {failure.sequence for failure in result.failed}
        for admission in plan.admitted:
            if admission.sequence not in named:  # its row was not free, or there is no such row
                result.failed.append(worker_pb2.Failure(sequence=admission.sequence, message=fault.message))
        num_answers = sum(1 for flag in plan.work.samples if flag)
        result.token_ids = np.full(num_answers, NO_TOKEN, dtype="<u4").tobytes()
        result.logprobs = np.zeros(num_answers, dtype="<f4").tobytes()
        return result

    def _release_again(self, plan: worker_pb2.StepPlan) -> None:
        """The fault may have come before all that the plan releases was released. Who has been admitted to such a row
        since has failed with the step."""
        with contextlib.suppress(PlanError):
            released = column(plan.released)
            self._rows.release(released)
            self._forget(released.tolist())

    def _add_failures(self, result: worker_pb2.StepResult, plan: worker_pb2.StepPlan, working: Column) -> None:
        """The failed among the sequences that this plan admits or works on, each once."""
        failures = self._rows.failures
        if self._rows.grammars.failures:
            failures = self._rows.grammars.failures | failures
        if not failures:
            return
        for row in dict.fromkeys([admission.row for admission in plan.admitted] + working.tolist()):
            if row in failures:
                add_failure(result, self._rows, row, failures[row])


def _message(error: Exception) -> str:
    """What the client may read: never a library's text, which could quote its input."""
    if isinstance(error, PlanError):
        return f"the step was refused: {error}"
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    return f"the step failed in the model ({type(error).__name__}); {SEE_LOG}"


def _outcome(error: Exception) -> Outcome:
    if isinstance(error, ConnectionAbortedError):  # the exchange's: another rank has failed
        return Outcome.LEFT
    return Outcome.SHORT if is_out_of_memory(error) else Outcome.FAILED


def _device_is_gone(error: Exception) -> bool:
    """After an error other than "out of memory" that the accelerator itself reports, every later call fails too."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)
