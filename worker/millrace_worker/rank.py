"""One loaded rank: who it is (`Describe`), how large its rows and pool are (`Prepare`), and the engine that results."""

from __future__ import annotations

import gc
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from millrace_worker import logs
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.grammar import FULL_LEXER_BYTES, host_bytes
from millrace_worker.libraries import give_back_pages
from millrace_worker.memory import peak_beyond, room_for_pool
from millrace_worker.model import FEATURES, Reach, in_rows, paged
from millrace_worker.proto import worker_pb2
from millrace_worker.rows import RowsShape
from millrace_worker.shortage import release_memory
from millrace_worker.store import StoreSize, Trial, store_of
from millrace_worker.work import column
from millrace_worker.worst_case import decode_plans, late_prefill_plan, long_prompt_plans, mixed_plan, prefill_plan

if TYPE_CHECKING:
    from millrace_worker.config import WorkerConfig

# A CPU's worst case is measured on less when the whole would take long, and scaled: a fraction of a second of
# multiplications for the prompt, this many scores for the sampler, and this many tokens of context for all decoding
# rows together (not scaled: attention gathers them in bounded parts).
CPU_TRIAL_FLOPS = 2e10
CPU_TRIAL_SCORES = 1 << 22
CPU_TRIAL_CONTEXT = 1 << 16
MIN_TRIAL_TOKENS = 16
# Of what steps take on a CPU: what its allocator keeps of earlier ones, in pieces of other sizes.
CPU_KEPT_SHARE = 0.5
# Whatever the steps take: one order of sizes leaves other holes in a heap than another. The same trial differs by 15
# MiB from one process to the next.
CPU_KEPT_BYTES = 32 << 20
# So many queries of one chunk may attend together: what they make of the context grows with both.
MAX_QUERIES = 256


@dataclass(frozen=True)
class TimedStep:
    """A step of so many prompt tokens, and what it took."""

    num_tokens: int
    seconds: float


class NotPreparedError(RuntimeError):
    """`Run` before `Prepare`."""


@dataclass(frozen=True)
class Identity:
    """What `Describe` says beyond the model's own figures."""

    architecture: str
    dtype: torch.dtype
    device_name: str
    weight_bytes: int
    quantization: str = ""  # of the weights, where they are not plain
    missing: Mapping[str, str] = field(default_factory=dict)  # beyond what the model says of itself


class Rank:
    """Built by `load.load_rank`. Its methods are called by one thread at a time (the server sees to it)."""

    def __init__(self, config: WorkerConfig, parts: EngineParts, identity: Identity) -> None:
        self._config = config
        self._parts = parts
        self._identity = identity
        self._instance = secrets.randbits(64)
        self._store = store_of(parts.model)
        self._engine: Engine | None = None
        self._prepared: tuple[worker_pb2.PrepareRequest, worker_pb2.Prepared] | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise NotPreparedError("Prepare must be answered before Run begins")
        return self._engine

    def describe(self) -> worker_pb2.ModelDescription:
        model, identity = self._parts.model, self._identity
        missing = {**model.missing, **identity.missing}
        reach = paged(model).reach if model.page_size else Reach()
        return worker_pb2.ModelDescription(
            architecture=identity.architecture,
            implementation=model.implementation + (f" ({identity.quantization})" if identity.quantization else ""),
            dtype=str(identity.dtype).removeprefix("torch."),
            device=self._parts.device.type,
            device_name=identity.device_name,
            rank=self._config.rank,
            world_size=self._config.world_size,
            vocab_size=model.vocab_size,
            max_positions=model.max_positions,
            page_size=model.page_size,
            instance=self._instance,
            capabilities=[name for name in FEATURES if name not in missing],
            missing=missing,
            attention_window=reach.attention_window,
            position_switch=reach.position_switch,
        )

    def is_prepared_for(self, request: worker_pb2.PrepareRequest) -> bool:
        return self._prepared is not None and self._prepared[0] == request

    @torch.inference_mode()
    def prepare(self, request: worker_pb2.PrepareRequest) -> worker_pb2.Prepared:
        """Runs the worst case, sizes pool and rows, answers the budget. The same request again changes nothing.

        Raises ValueError for a request that makes no sense and DoesNotFitError when there is too little memory.
        """
        self._take_device()
        if self._prepared is not None and self.is_prepared_for(request):
            self._parts.group.catch_up()
            return self._prepared[1]
        started = time.perf_counter()
        self._check(request)
        self._engine = self._prepared = None
        self._release_memory()
        grammar_bytes = self._grammar_bytes(request)
        workspace_bytes, timed = self._run_worst_case(request)
        if self._parts.device.type == "cpu":
            workspace_bytes += grammar_bytes
        self._release_memory()
        room = room_for_pool(self._config, self._parts.device, workspace_bytes)
        size = self._store.size(request, room)
        self._engine = self._build_engine(request, size)
        if self._parts.device.type == "cpu":
            give_back_pages()
        seconds = time.perf_counter() - started
        prepared = worker_pb2.Prepared(
            num_pages=size.num_pages,
            max_sequence_tokens=size.max_sequence_tokens,
            page_bytes=self._store.page_bytes,
            weight_bytes=self._identity.weight_bytes,
            workspace_bytes=workspace_bytes,
            free_bytes=max(0, room.free_bytes - self._store.num_bytes(size)),
            max_rows=size.max_rows,
            trial_tokens=timed.num_tokens,
            trial_us=_microseconds(timed.seconds),
            prepare_us=_microseconds(seconds),
        )
        self._prepared = (request, prepared)
        self._log_budget(prepared, size, grammar_bytes, seconds)
        return prepared

    def _grammar_bytes(self, request: worker_pb2.PrepareRequest) -> int:
        """Of matchers, on the host: with a GPU nothing of them lies on the device."""
        return host_bytes(request.max_rows) if request.grammars and self._parts.vocabulary is not None else 0

    def _take_device(self) -> None:
        """Events, streams and what names no device belong to the calling thread's current device, which is the first
        one in every new thread: this one computes from now on, and another one has loaded the weights."""
        if self._parts.device.type == "cuda":
            torch.cuda.set_device(self._parts.device)

    def _check(self, request: worker_pb2.PrepareRequest) -> None:
        for name in ("max_rows", "max_step_tokens"):
            if getattr(request, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if request.max_sequence_tokens > self._parts.model.max_positions:
            raise ValueError(
                f"max_sequence_tokens is {request.max_sequence_tokens}, but the model's positions end at "
                f"{self._parts.model.max_positions}: lower --max-total-tokens"
            )

    def _release_memory(self) -> None:
        gc.collect()
        release_memory(self._parts.device)

    def _run_worst_case(self, request: worker_pb2.PrepareRequest) -> tuple[int, TimedStep]:
        """Bytes that no step takes more of, beyond weights and store, and what the largest step of prompts without
        context took. A device runs the largest steps themselves."""
        longest = request.max_sequence_tokens or self._parts.model.max_positions
        tokens, max_rows = request.max_step_tokens, min(request.max_rows, request.max_step_tokens)
        trial = Trial(longest, tokens, max_rows, min(longest, tokens))
        device, model = self._parts.device, self._parts.model
        encodes = not model.page_size and in_rows(model).encodes_prompts
        if device.type == "cpu":
            trial = self._shorten(trial)
        room = room_for_pool(self._config, device, 0)
        size = self._agree(self._store.trial_size(trial, request, room))
        rows = min(trial.rows, size.max_rows)
        engine = self._build_engine(request, size)
        prefill, decodes = prefill_plan(engine.shape, trial.tokens), decode_plans(engine.shape, rows, trial.context)
        late_tokens = min(trial.tokens, longest)
        if device.type != "cpu":
            late = late_prefill_plan(engine.shape, late_tokens, longest)
            plans = [prefill, late, *decodes, mixed_plan(engine.shape, rows, tokens)]
            plans += long_prompt_plans(engine.shape, size.max_sequence_tokens - 1) if encodes else []
            num_bytes, timed = self._measure(engine, plans)
            return num_bytes + self._rows_bytes(request, longest), timed
        # Parts of it, each as if the whole of it grew with the tokens, rows or context that were left out. A step has
        # them all, at worst at the same time.
        late_bytes = self._late_bytes(
            engine, min(late_tokens, MIN_TRIAL_TOKENS), min(late_tokens, MAX_QUERIES), longest
        )
        num_prompt_tokens = max(tokens, size.max_sequence_tokens) if encodes else tokens
        num_bytes, timed = self._measure(engine, [prefill])
        prefill_bytes = num_bytes * num_prompt_tokens // trial.tokens
        num_bytes, _ = self._measure(engine, decodes)
        decode_bytes = max(0, num_bytes - self._store.touched_bytes(size)) * max_rows // rows
        return int((late_bytes + prefill_bytes + decode_bytes) * (1 + CPU_KEPT_SHARE)) + CPU_KEPT_BYTES, timed

    def _late_bytes(self, engine: Engine, tokens: int, queries: int, longest: int) -> int:
        """What the last `queries` tokens of the longest prompt take, by what `tokens` of them take behind two contexts:
        beyond what does not depend on it, as much more as context and queries are larger."""
        context = min(longest, max(tokens, CPU_TRIAL_CONTEXT // tokens))
        # The first one also takes what only first ones do.
        first, alone, behind = (
            self._measure(engine, [late_prefill_plan(engine.shape, tokens, n)])[0] for n in (tokens, tokens, context)
        )
        grown = max(0, behind - alone) * (longest - tokens) // max(1, context - tokens)
        return first + grown * queries // tokens

    def _measure(self, engine: Engine, plans: list[worker_pb2.StepPlan]) -> tuple[int, TimedStep]:
        """Bytes that these plans take at most, and how long the first one took."""
        self._release_memory()
        seconds: list[float] = []

        def run() -> None:
            for plan in plans:
                began = time.perf_counter()
                engine.trial(plan)
                self._synchronize()
                seconds.append(time.perf_counter() - began)

        num_bytes = peak_beyond(run, self._parts.device)
        return num_bytes, TimedStep(int(column(plans[0].work.counts).sum()), seconds[0])

    def _synchronize(self) -> None:
        """Waits until the device has done what it was given."""
        if self._parts.device.type == "cuda":
            torch.cuda.synchronize(self._parts.device)

    def _rows_bytes(self, request: worker_pb2.PrepareRequest, longest: int) -> int:
        """Of the tokens and page tables of all rows on the device, which are made after the store."""
        page_size = self._parts.model.page_size
        return request.max_rows * (8 * (longest + 1) + (4 * -(-longest // page_size) if page_size else 0))

    def _agree(self, size: StoreSize) -> StoreSize:
        """Rank 0's: every rank must try the same plans, and ranks may have different room."""
        figures = [size.max_rows, size.max_sequence_tokens, size.num_pages]
        agreed = self._parts.group.broadcast(torch.tensor(figures, device=self._parts.device))
        return StoreSize(*agreed.tolist())

    def _shorten(self, trial: Trial) -> Trial:
        """What of the worst case a CPU runs in little time: activations grow with tokens, scores with rows."""
        weights = max(1, self._identity.weight_bytes // self._identity.dtype.itemsize)
        affordable = int(CPU_TRIAL_FLOPS * self._config.threads / (2 * weights))
        # Every rank must try the same plans, and ranks may hold weights of different sizes: rank 0's figure counts.
        affordable = int(self._parts.group.broadcast(torch.tensor([affordable])))
        rows = min(trial.rows, max(1, CPU_TRIAL_SCORES // self._parts.model.vocab_size))
        tokens = min(trial.tokens, max(MIN_TRIAL_TOKENS, affordable))
        return Trial(trial.longest, tokens, rows, min(trial.context, max(1, CPU_TRIAL_CONTEXT // rows)))

    def _build_engine(self, request: worker_pb2.PrepareRequest, size: StoreSize) -> Engine:
        model = self._parts.model
        self._store.allocate(size)
        shape = RowsShape(
            max_rows=size.max_rows,
            max_sequence_tokens=size.max_sequence_tokens,
            page_size=model.page_size,
            num_pages=size.num_pages,
            vocab_size=model.vocab_size,
            max_step_tokens=request.max_step_tokens,
            max_top_n_tokens=request.max_top_n_tokens,
            prompt_logprobs=request.prompt_logprobs,
            grammars=request.grammars,
        )
        return Engine(self._parts, shape)

    def _log_budget(self, prepared: worker_pb2.Prepared, size: StoreSize, grammar_bytes: int, seconds: float) -> None:
        mib = {
            "weights_mib": prepared.weight_bytes,
            "workspaces_mib": prepared.workspace_bytes,
            "pool_mib" if size.num_pages else "rows_mib": self._store.num_bytes(size),
            "left_mib": prepared.free_bytes,
        }
        if grammar_bytes:
            mib |= {"host_grammars_mib": grammar_bytes, "host_grammar_most_mib": FULL_LEXER_BYTES}
        pool = {"pool_pages": size.num_pages, "pool_tokens": size.num_pages * self._parts.model.page_size}
        logs.info(
            "memory budget",
            **{name: round(value / 2**20, 1) for name, value in mib.items()},
            **(pool if size.num_pages else {"rows": size.max_rows}),
            max_sequence_tokens=prepared.max_sequence_tokens,
            prepare_ms=round(seconds * 1000),
        )


def _microseconds(seconds: float) -> int:
    return max(1, round(seconds * 1e6))
