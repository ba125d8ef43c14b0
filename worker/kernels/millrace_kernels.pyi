"""CPU kernels. Addresses are those of contiguous torch tensors; what they must be good for, the Rust sources say."""

from collections.abc import Callable
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

INTERFACE: int
"""Raised with every change of what the worker calls."""

Dtype = Literal["float32", "bfloat16"]
Activation = str | tuple[float, float]
"""silu, relu, relu2, gelu or gelu_tanh; or alpha and limit of a gate that is clamped."""

@final
class Machine:
    """An instruction-set level and a team of threads: what operators are made on."""

    def __new__(cls, level: str | None, threads: int, parallel: int, thread_num: int) -> Machine:
        """`level`: one of `levels()`, None for the best. `parallel`, `thread_num`: addresses of GOMP_parallel and
        omp_get_thread_num, or 0: then one thread computes. Raises ValueError for a level that this CPU has not."""
    def start_helpers(self) -> None:
        """From here on kernels are shared by threads of their own, and not by OpenMP's, in the whole process. Raises
        OSError when the system starts no further thread."""
    @staticmethod
    def levels() -> list[str]:
        """The levels of this CPU, the best last."""
    @property
    def level(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def without_products(self) -> Machine:
        """The same, for a CPU on which another library is to multiply by weights of bfloat16."""
    @property
    def multiplies(self) -> bool:
        """Whether weights of bfloat16 are for these kernels."""
    @property
    def multiplies_bf16(self) -> bool:
        """Whether the CPU multiplies bfloat16 itself."""

@final
class Linear:
    """activation(x W^T + bias), or activation(gate) * up, over weights in the kernels' own packed form."""

    def __new__(
        cls,
        machine: Machine,
        weight: int,
        shape: tuple[int, int],
        dtypes: tuple[str, str],
        bias: list[float] | None,
        epilogue: tuple[Activation | None, bool],
    ) -> Linear:
        """Packs the weight of `shape` (outputs, inputs): the tensor may go. `dtypes`: of weight and input, and of the
        result. `epilogue`: an activation or None; whether the weight is [gate; up]."""
    @staticmethod
    def supports(dtype_name: str, shape: tuple[int, int], gated: bool) -> bool: ...
    def apply(self, x: int, rows: int, out: int) -> None:
        """Writes [rows, outputs], or half as many columns when gated."""
    def lookup(self, ids: tuple[int, int], first: int, scale: float, out: int) -> None:
        """Rows of the weight as float32, times `scale`. `ids`: address and number of int64, the first row's is `first`;
        others give zeros. Raises ValueError when gated."""
    @property
    def num_bytes(self) -> int: ...

@final
class QuantizedLinear:
    """As `Linear`, over a weight of 8 or 4 bits: scale * (code - zero), by output and group of inputs."""

    def __new__(
        cls,
        machine: Machine,
        weight: tuple[int, int, int],
        form: tuple[int, int, int, int],
        dtypes: tuple[str, str, str],
        bias: list[float] | None,
        epilogue: tuple[Activation | None, bool],
    ) -> QuantizedLinear:
        """Packs the weight: the tensors may go. `weight`: addresses of codes, scales and zeros (0: none). `form`:
        outputs, inputs, inputs of a group, bits. `dtypes`: of the input, the scales and the result. Raises ValueError
        for what `supports` does not agree to."""
    @staticmethod
    def supports(form: tuple[int, int, int, int], gated: bool) -> bool: ...
    def apply(self, x: int, rows: int, out: int) -> None:
        """Writes [rows, outputs], or half as many columns when gated."""
    @property
    def num_bytes(self) -> int: ...

@final
class Experts:
    """A mixture's experts: each token goes through those that it has chosen, and what they give is added up."""

    def __new__(
        cls,
        machine: Machine,
        experts: list[tuple[Linear | QuantizedLinear, Linear | QuantizedLinear]],
        weigh_input: bool,
    ) -> Experts:
        """`experts`: what each goes up and down by, down to float32. `weigh_input`: a token's weights scale what its
        experts take, not what they give. Raises ValueError for experts that are not of one kind."""
    def scratch_rows(self, tokens: int, choices: int) -> int:
        """Rows of each scratch tensor that a call needs."""
    def apply(self, x: tuple[int, int], chosen: tuple[int, int, int], scratch: tuple[int, int, int], out: int) -> None:
        """`x`: rows, and their number. `chosen`: int64 and float32 [rows, choices], and the choices. `scratch`: rows as
        the experts take them, as they go up, and float32 as they come down. `out`: float32. Raises ValueError for an
        expert that there is not."""

@final
class Chain:
    """Operators one after the other, in one call. What they read and write is named by numbers of slots."""

    def __new__(cls, machine: Machine) -> Chain: ...
    def pick(self, table: int, dtype_name: Dtype, width: int, scale: float, out: int) -> None:
        """Rows of a table [., width], as float32, times `scale`. `table`: which of those that `run` gets."""
    def lookup(self, linear: Linear, table: int, first: int, scale: float, out: int) -> None:
        """As `Linear.lookup`, of the rows that `run` wants of this table. Raises ValueError when gated."""
    def add(self, x: int, delta: int, width: int) -> None:
        """x += delta, float32 rows."""
    def norm(self, norm: Norm, residual: int, delta: int | None, out: int) -> None:
        """As `Norm.add_norm`."""
    def linear(self, linear: Linear | QuantizedLinear, x: int, out: int) -> None:
        """As its `apply`."""
    def attend(
        self, attention: Attention, plan: int, turns: tuple[int, int] | None, kv: int, qkv: int, out: int
    ) -> None:
        """As `Attention.attend`. `plan`: which of those that `run` gets. `turns`: the slot of cosines and sines, and
        how many dimensions turn; None: none."""
    def run(self, rows: int, slots: list[int], plans: list[Plan], tables: list[tuple[int, int, int]]) -> None:
        """All of them, on so many rows. `slots`: their addresses. `tables`: the address of each, its rows, and the
        address of the int64 numbers of those that are wanted. Raises ValueError when an operator has too little to go
        on, as it would by itself, and for a row that a table has not; those before it have run."""

@final
class Exchange:
    """One rank's end of a memory that the ranks of one machine share. All ranks call the same, in the same order."""

    def __new__(cls, memory: int, rank: int, size: int, alive: Callable[[], None]) -> Exchange:
        """`memory`: `shared_bytes(size)` zeros at first, aligned to 128. `alive` is called about every 100 ms while
        this rank waits; what it raises ends the exchange for good."""
    @staticmethod
    def shared_bytes(size: int) -> int: ...
    def begin_step(self) -> None:
        """Until `end_step`, exchanges raise ConnectionAbortedError when another rank has ended the step early."""
    def end_step(self, outcome: int) -> tuple[int, int]:
        """Says how the step went here, 0 being well, up to 255, and waits for the others. Answers the worst outcome and
        the first rank that had it; afterwards the exchange is in order, wherever in the step each rank stopped."""
    def sum(self, x: int, count: int) -> None:
        """Sums float32 over the ranks, in place: the same bits on each."""
    def broadcast(self, x: int, bytes: int) -> None:
        """Overwrites `x` with rank 0's."""
    def gather(self, x: int, rows: int, row_bytes: int, out: int) -> None:
        """On rank 0, writes the ranks' rows side by side to `out`; elsewhere `out` is not used."""

@final
class Norm:
    """RMSNorm ("rms") or LayerNorm ("layer") of rows of float32."""

    def __new__(
        cls,
        machine: Machine,
        kind: str,
        eps: float,
        weight: list[float],
        bias: list[float] | None,
        dtypes: tuple[str, str],
    ) -> Norm:
        """`weight`, `bias`: a multiple of 16 values. `dtypes`: of the delta and of the output."""
    def add_norm(self, residual: int, delta: int, out: int, rows: int) -> None:
        """residual += delta (0: nothing to add); out = norm(residual)."""

@final
class Step:
    """The sequences that compute in a step, with their pages."""

    def __new__(
        cls,
        rows: NDArray[np.int64],
        starts: NDArray[np.int64],
        counts: NDArray[np.int64],
        page_table: NDArray[np.int32],
        num_pages: int,
    ) -> Step:
        """Entry i computes the positions `starts[i] .. starts[i] + counts[i]` of row `rows[i]` of the page table [rows,
        pages of a row]; all contiguous. Raises ValueError for a place that the table does not have, or a page that the
        pool of `num_pages` does not have."""
    @property
    def num_tokens(self) -> int: ...

@final
class Plan:
    """A step's tasks, for every layer with the same heads and window."""

    @property
    def num_tokens(self) -> int: ...

@final
class Attention:
    """One layer's attention over pages: norm and rotation of q and k, writing of k and v, attention, in one call."""

    def __new__(
        cls,
        machine: Machine,
        heads: tuple[int, int, int],
        rule: tuple[float, int | None, float | None, list[float] | None, list[float] | None],
        pairs: str,
        norm: tuple[float, list[float]] | None,
        dtypes: tuple[str, str],
    ) -> Attention:
        """`heads`: query heads, KV heads, dimensions of a head. `rule`: the scores' scale, window, softcap, ALiBi's
        slopes and sinks of the query heads. `pairs`: "halves" or "neighbours" are rotated together. `norm`: epsilon and
        weights [query heads + KV heads, dimensions] of an RMSNorm before the rotation. `dtypes`: of q, k, v as they
        come, and of pages and result. Raises ValueError for a layer that there is no kernel for."""
    def plan(self, step: Step) -> Plan: ...
    def attend(self, plan: Plan, kv: int, qkv: int, turns: tuple[int, int], out: int) -> None:
        """`kv`: the layer's pages, of the pool that the step was made for. `qkv` [T, (heads + 2 KV heads) *
        dimensions]. `turns`: float32 [T, 2 R], the cosines of R / 2 pairs twice, negative sines, sines; and R. Both 0:
        no rotation. `out` [T, heads * dimensions]."""

@final
class Sampler:
    """Chooses the next token of every row of a step, with the numbers of `millrace_worker.sampling`."""

    def __new__(cls, machine: Machine, watermark: tuple[int, float]) -> Sampler:
        """`watermark`: the largest word of a green token, with its highest bit flipped, and what green tokens gain."""
    def sample(
        self,
        scores: tuple[int, int, int],
        parameters: tuple[NDArray[np.float32], NDArray[np.int64]],
        step: NDArray[np.int64],
        counts: tuple[int, int],
        out: tuple[int, int],
    ) -> tuple[bytes, bytes, bytes] | None:
        """`scores`: float32 [R, V], R, V. `parameters`: [R, 8] temperature, top-p, typical-p, -log(min-p), penalties
        for repetition, frequency, presence, count; [R, 4] features (1 watermark, 2 penalties, 4 narrowing, 8 drawn),
        top-k, how many of the best, the row among the counts. `step` [R, 4]: two words of noise, the token before, how
        many tokens there are. `counts`: float32 [rows, V] of all tokens and of the output, or zeros. `out`: int64 [R]
        and float32 [R]. Answers how many of the best each row has (int64), their ids (int64), logprobs (float32)."""
