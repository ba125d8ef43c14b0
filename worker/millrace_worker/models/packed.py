"""Linear layers of GPTQ and AWQ checkpoints: of each only a rank's part is read, and no number is rounded.

Of a matrix [out, in] with P = 32 / bits codes in an int32, the first of them in its lowest bits, both store `qweight`,
`qzeros` and float `scales` [groups, out].

GPTQ (Frantar et al. 2022), as AutoGPTQ and GPTQModel store it: `qweight` [in / P, out], `qzeros` [groups, out / P],
less 1 in the format "gptq", and `g_idx` [in], the group of each input; without it, and where all of it is 0, groups
follow one another.

AWQ (Lin et al. 2023), as AutoAWQ's "gemm" stores it: `qweight` [in, out / P], `qzeros` [groups, out / P], both with
eight outputs in the order 0, 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from millrace_worker.layers.quantized import MIDDLE, QuantizedWeight, ends_whole, packed_nibbles, unpacked_nibbles
from millrace_worker.models.checkpoint import Checkpoint, CheckpointError
from millrace_worker.models.quantization import AWQ, PackedCodes
from millrace_worker.models.sharding import ShardingError

WORDS = (torch.int32,)
INDICES = (torch.int32, torch.int64)
# Where each of eight outputs is among the codes of an int32 of AWQ.
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
# What stands for 0 in symmetric codes of 8 bits.
MIDDLE_OF_BYTE = 128


@dataclass(frozen=True)
class PackedReader:
    """The quantized matrices of `checkpoint`, which are all of the same form; others it does not know."""

    checkpoint: Checkpoint
    form: PackedCodes

    def has(self, path: str) -> bool:
        """Whether the linear layer `path` is quantized."""
        return self.checkpoint.has(f"{path}.qweight")

    def read(self, path: str, shape: tuple[int, int], rows: range, columns: range) -> QuantizedWeight:
        """The outputs `rows` and inputs `columns` of the matrix `path` of `shape` (out, in).

        Raises CheckpointError, also for a matrix that cannot have this form; ShardingError where `columns` cut a group.
        """
        outputs, inputs = shape
        group = min(self.form.group or inputs, inputs)
        self._check_shape(path, shape, group)
        spread, count = self._spread(path, inputs, group), -(-inputs // group)
        self._check_cut(path, columns, inputs, group if spread is None else inputs)
        first = columns.start // group
        groups = slice(first, max(first + 1, -(-columns.stop // group))) if spread is None else slice(0, count)
        stored = self.checkpoint.read(f"{path}.scales", (count, outputs), groups, _slice(rows))
        scales = torch.empty(len(rows), len(stored), dtype=torch.float32).copy_(stored.t())
        zeros = self._zeros(path, (count, outputs), groups, rows)
        codes = (self._awq_codes if self.form.method == AWQ else self._gptq_codes)(path, shape, rows, columns)
        if spread is not None:
            return gathered(codes, scales, zeros, spread[_slice(columns)])
        return QuantizedWeight(codes, scales, len(columns), group, zeros)

    def _check_shape(self, path: str, shape: tuple[int, int], group: int) -> None:
        per_word = 32 // self.form.bits
        for size, what in zip(shape, ("outputs", "inputs"), strict=True):
            if size % per_word:
                raise CheckpointError(
                    f"{path}: {size} {what} do not fill whole int32 of {per_word} codes each ({self.form.method})"
                )
        if group < shape[1] and group % per_word:
            raise CheckpointError(
                f"{path}: groups of {group} inputs do not fill whole int32 of {per_word} codes each "
                f"({self.form.method}, `group_size` of `quantization_config`)"
            )

    def _check_cut(self, path: str, columns: range, inputs: int, group: int) -> None:
        if not ends_whole(columns, inputs, group, self.form.bits):
            raise ShardingError(
                f"{path}: inputs {columns.start} to {columns.stop} of {inputs} do not end where a group of {group} "
                "ends: choose --num-shard accordingly"
            )

    def _spread(self, path: str, inputs: int, group: int) -> Tensor | None:
        """int64 [in], the group of each input; None where groups follow one another."""
        name = f"{path}.g_idx"
        if self.form.method == AWQ or not self.checkpoint.has(name):
            return None
        found = self.checkpoint.read(name, (inputs,), dtypes=INDICES).long()
        expected = torch.arange(inputs) // group
        # Some writers leave zeros where they have put nothing in order, and TGI reads them so.
        if torch.equal(found, expected) or not found.any():
            return None
        if not torch.equal(found.sort().values, expected):
            raise CheckpointError(
                f"{name}: does not give each of {int(expected[-1]) + 1} groups {group} inputs, as `group_size` of "
                "`quantization_config` says"
            )
        return found

    def _gptq_codes(self, path: str, shape: tuple[int, int], rows: range, columns: range) -> Tensor:
        """As a QuantizedWeight has them: of an int32 the lowest byte comes first."""
        per_word = 32 // self.form.bits
        stored = (shape[1] // per_word, shape[0])
        here = slice(columns.start // per_word, -(-columns.stop // per_word))
        words = self.checkpoint.read(f"{path}.qweight", stored, here, _slice(rows), dtypes=WORDS)
        codes = words.t().clone(memory_format=torch.contiguous_format).view(torch.uint8)
        first = columns.start - here.start * per_word
        if self.form.bits == 8:
            return codes.bitwise_xor_(MIDDLE_OF_BYTE).view(torch.int8)[:, first : first + len(columns)]
        return codes[:, first // 2 : -(-(first + len(columns)) // 2)]

    def _awq_codes(self, path: str, shape: tuple[int, int], rows: range, columns: range) -> Tensor:
        stored, here = (shape[1], shape[0] // 8), _words(rows, 8)
        words = self.checkpoint.read(f"{path}.qweight", stored, _slice(columns), here, dtypes=WORDS)
        pairs = words.contiguous().view(torch.uint8)  # of outputs
        even, odd = pairs[::2], pairs[1::2]
        # [in / 2, words, 4, 2]: the codes of two inputs in a byte, that of the second one above.
        both = torch.stack(((even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)), dim=-1)
        codes = both.view(len(even), -1, 8)[:, :, AWQ_PLACES].flatten(1).t()
        first = rows.start - here.start * 8
        return codes[first : first + len(rows)].contiguous()

    def _zeros(self, path: str, shape: tuple[int, int], groups: slice, rows: range) -> Tensor | None:
        """uint8 [rows, groups]; None where all are what codes without zeros have. `shape`: all groups, all outputs."""
        bits = self.form.bits
        per_word = 32 // bits
        here, name = _words(rows, per_word), f"{path}.qzeros"
        words = self.checkpoint.read(name, (shape[0], shape[1] // per_word), groups, here, dtypes=WORDS)
        stored = words.contiguous().view(torch.uint8)
        if bits == 4:
            stored = unpacked_nibbles(stored)
        if self.form.method == AWQ:
            stored = stored.view(len(stored), -1, 8)[:, :, AWQ_PLACES].flatten(1)
        first = rows.start - here.start * per_word
        zeros = stored[:, first : first + len(rows)].t().contiguous()
        if self.form.zeros_less_one:
            zeros = (zeros + 1) & (2**bits - 1)
        middle = MIDDLE if bits == 4 else MIDDLE_OF_BYTE
        if bool((zeros == middle).all()):
            return None
        if bits == 8:
            other = int(zeros[zeros != middle][0])
            raise CheckpointError(
                f"{name}: has the zero {other}; codes of 8 bits are read where they are symmetric: all zeros {middle}"
            )
        return zeros


def gathered(codes: Tensor, scales: Tensor, zeros: Tensor | None, spread: Tensor) -> QuantizedWeight:
    """Codes whose inputs are in the groups `spread`, int64 [inputs], group by group. A rank's part has more inputs of
    one group than of another: they are filled up, to a multiple of 8, with codes that mean 0."""
    wide = codes if codes.dtype is torch.int8 else unpacked_nibbles(codes)
    sizes = spread.bincount(minlength=scales.shape[1])
    group = -(-int(sizes.max()) // 8) * 8
    found, order = spread.sort(stable=True)
    places = found * group + torch.arange(len(spread)) - (sizes.cumsum(0) - sizes)[found]
    nothing = MIDDLE if zeros is None else zeros.repeat_interleave(group, dim=1)
    filled = wide.new_zeros(len(wide), len(sizes) * group)
    if wide.dtype is torch.uint8:
        filled += nothing
    filled[:, places] = wide[:, order]
    inputs = torch.zeros(filled.shape[1], dtype=torch.int64)
    inputs[places] = order
    packed = filled if filled.dtype is torch.int8 else packed_nibbles(filled)
    return QuantizedWeight(packed, scales, filled.shape[1], group, zeros, inputs)


def _slice(part: range) -> slice:
    return slice(part.start, part.stop)


def _words(part: range, per_word: int) -> slice:
    """Those that hold anything of `part`."""
    return slice(part.start // per_word, -(-part.stop // per_word))
