"""One loaded rank: who it is (`Describe`), how large its rows and pool are (`Prepare`), and the engine that results."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from millrace_worker import logs
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.grammar import host_bytes
from millrace_worker.memory import peak_beyond, room_for_pool
from millrace_worker.model import FEATURES, Reach, paged
from millrace_worker.proto import worker_pb2
from millrace_worker.rows import RowsShape
from millrace_worker.store import StoreSize, Trial, store_of
from millrace_worker.worst_case import decode_plan, prefill_plan

if TYPE_CHECKING:
    from millrace_worker.config import WorkerConfig

# A CPU's worst case is measured on less when the whole would take long, and scaled: a fraction of a second of
# multiplications for the prompt, this many scores for the sampler, and this many tokens of context for all decoding
# rows together (not scaled: attention gathers them in bounded parts).
CPU_TRIAL_FLOPS = 2e10
CPU_TRIAL_SCORES = 1 << 22
CPU_TRIAL_CONTEXT = 1 << 16
MIN_TRIAL_TOKENS = 16


class NotPreparedError(RuntimeError):
    """`Run` before `Prepare`."""


@dataclass(frozen=True)
class Identity:
    """What `Describe` says beyond the model's own figures."""

    architecture: str
    dtype: torch.dtype
    device_name: str
    weight_bytes: int
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
            implementation=model.implementation,
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
            return self._prepared[1]
        started = time.perf_counter()
        self._check(request)
        self._engine = self._prepared = None
        self._release_memory()
        workspace_bytes = self._run_worst_case(request) + self._grammar_bytes(request)
        self._release_memory()
        room = room_for_pool(self._config, self._parts.device, workspace_bytes)
        size = self._store.size(request, room)
        self._engine = self._build_engine(request, size)
        prepared = worker_pb2.Prepared(
            num_pages=size.num_pages,
            max_sequence_tokens=size.max_sequence_tokens,
            page_bytes=self._store.page_bytes,
            weight_bytes=self._identity.weight_bytes,
            workspace_bytes=workspace_bytes,
            free_bytes=max(0, room.free_bytes - self._store.num_bytes(size)),
            max_rows=size.max_rows,
        )
        self._prepared = (request, prepared)
        self._log_budget(prepared, size, time.perf_counter() - started)
        return prepared

    def _grammar_bytes(self, request: worker_pb2.PrepareRequest) -> int:
        """Matchers are the host's: on a GPU nothing of them lies on the device."""
        held = request.grammars and self._parts.vocabulary is not None and self._parts.device.type == "cpu"
        return host_bytes(request.max_rows) if held else 0

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
        if self._parts.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run_worst_case(self, request: worker_pb2.PrepareRequest) -> int:
        """Peak bytes of the largest prompt step and of the fullest decode step, over a store just large enough."""
        longest = request.max_sequence_tokens or self._parts.model.max_positions
        tokens, max_rows = request.max_step_tokens, min(request.max_rows, request.max_step_tokens)
        rows, context = max_rows, min(longest, tokens)
        if self._parts.device.type == "cpu":
            tokens, rows, context = self._shorten(tokens, rows, context)
        device = self._parts.device
        room = room_for_pool(self._config, device, 0)
        size = self._agree(self._store.trial_size(Trial(longest, tokens, rows, context), request, room))
        rows = min(rows, size.max_rows)
        engine = self._build_engine(request, size)
        prefill, decode = prefill_plan(engine.shape, tokens), decode_plan(engine.shape, rows, context)
        touched = self._store.touched_bytes(size) if device.type == "cpu" else 0
        prefill_bytes = peak_beyond(lambda: engine.trial(prefill), device) * request.max_step_tokens // tokens
        decode_bytes = max(0, peak_beyond(lambda: engine.trial(decode), device) - touched) * max_rows // rows
        return max(prefill_bytes, decode_bytes)

    def _agree(self, size: StoreSize) -> StoreSize:
        """Rank 0's: every rank must try the same plans, and ranks may have different room."""
        figures = [size.max_rows, size.max_sequence_tokens, size.num_pages]
        agreed = self._parts.group.broadcast(torch.tensor(figures, device=self._parts.device))
        return StoreSize(*agreed.tolist())

    def _shorten(self, tokens: int, rows: int, context: int) -> tuple[int, int, int]:
        """What of the worst case a CPU runs in little time: activations grow with tokens, scores with rows."""
        weights = max(1, self._identity.weight_bytes // self._identity.dtype.itemsize)
        affordable = int(CPU_TRIAL_FLOPS * self._config.threads / (2 * weights))
        # Every rank must try the same plans, and ranks may hold weights of different sizes: rank 0's figure counts.
        affordable = int(self._parts.group.broadcast(torch.tensor([affordable])))
        rows = min(rows, max(1, CPU_TRIAL_SCORES // self._parts.model.vocab_size))
        return min(tokens, max(MIN_TRIAL_TOKENS, affordable)), rows, min(context, max(1, CPU_TRIAL_CONTEXT // rows))

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

    def _log_budget(self, prepared: worker_pb2.Prepared, size: StoreSize, seconds: float) -> None:
        mib = {
            "weights_mib": prepared.weight_bytes,
            "workspaces_mib": prepared.workspace_bytes,
            "pool_mib" if size.num_pages else "rows_mib": self._store.num_bytes(size),
            "left_mib": prepared.free_bytes,
        }
        pool = {"pool_pages": size.num_pages, "pool_tokens": size.num_pages * self._parts.model.page_size}
        logs.info(
            "memory budget",
            **{name: round(value / 2**20, 1) for name, value in mib.items()},
            **(pool if size.num_pages else {"rows": size.max_rows}),
            max_sequence_tokens=prepared.max_sequence_tokens,
            prepare_ms=round(seconds * 1000),
        )
