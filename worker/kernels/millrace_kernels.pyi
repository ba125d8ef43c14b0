"""CPU kernels. Addresses are those of contiguous torch tensors; what they must be good for stands in the Rust sources."""

from typing import Literal, final

Dtype = Literal["float32", "bfloat16"]

@final
class Machine:
    """An instruction-set level and a team of threads: what operators are made on."""

    def __new__(cls, level: str | None, threads: int, parallel: int, thread_num: int) -> Machine:
        """`level`: one of `levels()`, None for the best. `parallel`, `thread_num`: addresses of GOMP_parallel and
        omp_get_thread_num, or 0: then one thread computes. Raises ValueError for a level that this CPU has not."""
    @staticmethod
    def levels() -> list[str]:
        """The levels of this CPU, the best last."""
    @property
    def level(self) -> str: ...
    @property
    def threads(self) -> int: ...
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
        epilogue: tuple[str | None, bool],
    ) -> Linear:
        """Packs the weight of `shape` (outputs, inputs): the tensor may go. `dtypes`: of weight and input, and of the
        result. `epilogue`: "silu", "relu", "gelu", "gelu_tanh" or None; whether the weight is [gate; up]."""
    @staticmethod
    def supports(dtype_name: str, shape: tuple[int, int], gated: bool) -> bool: ...
    def apply(self, x: int, rows: int, out: int) -> None:
        """Writes [rows, outputs], or half as many columns when gated."""
    @property
    def num_bytes(self) -> int: ...

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
