"""The two kinds of recurrent block: from the normalized residual stream to what is added to it.

T tokens of a step, D width of the stream, C channels of the convolution. Linear layers take their weights' dtype,
everything between them is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from millrace_worker.layers.linear import ACTIVATIONS, Linear
from millrace_worker.models.recurrent.scan import Drive, paired_scan, paired_step, selective_scan, selective_step
from millrace_worker.models.recurrent.spec import Mamba, Mamba2
from millrace_worker.models.recurrent.step import RecurrentStep, RowStates


class Mixer(Protocol):
    @property
    def linears(self) -> tuple[Linear, ...]: ...

    @property
    def tail_shape(self) -> tuple[int, ...]:
        """Of one row, as is `state_shape`."""
        ...

    @property
    def state_shape(self) -> tuple[int, ...]: ...

    def __call__(self, h_TD: Tensor, rows: RowStates, step: RecurrentStep) -> Tensor: ...


@dataclass(frozen=True)
class CausalConvolution:
    """Each channel by a filter of its own over the last inputs, `weight` [taps, C], and an activation."""

    weight: Tensor
    bias: Tensor | None
    activation: str

    @property
    def tail_shape(self) -> tuple[int, int]:
        return len(self.weight) - 1, self.weight.shape[1]

    def __call__(self, x_TC: Tensor, tails: Tensor, step: RecurrentStep) -> Tensor:
        def one(tokens: slice | Tensor, tails_RKC: Tensor) -> Tensor:
            window = torch.cat([tails_RKC, x_TC[tokens][:, None]], 1)
            tails_RKC.copy_(window[:, 1:])
            return self._filtered(list(window.unbind(1)))

        def many(tokens: slice, tail_KC: Tensor) -> Tensor:
            x = x_TC[tokens]
            window = torch.cat([tail_KC, x])
            tail_KC.copy_(window[len(x) :])
            return self._filtered([window[tap : tap + len(x)] for tap in range(len(self.weight))])

        return step.scatter(torch.empty_like(x_TC), tails, one, many)

    def _filtered(self, shifted: list[Tensor]) -> Tensor:
        y = shifted[0] * self.weight[0]
        for x, tap in zip(shifted[1:], self.weight[1:], strict=True):
            y.addcmul_(x, tap)
        return ACTIVATIONS[self.activation](y if self.bias is None else y.add_(self.bias))


@dataclass(frozen=True, kw_only=True)
class MambaMixer:
    """`decay` [C, N] is negative; `skip` [C] is what of its input a channel passes on; `step_bias` [C] is `widen`'s."""

    kind: Mamba
    project: Linear  # to [x, gate]
    convolution: CausalConvolution
    select: Linear  # to [steps, into, out]
    widen: Linear  # from the rank of the steps to the channels
    step_bias: Tensor
    decay: Tensor
    skip: Tensor
    out: Linear
    dtype: torch.dtype  # what linear layers take

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.project, self.select, self.widen, self.out

    @property
    def tail_shape(self) -> tuple[int, ...]:
        return self.convolution.tail_shape

    @property
    def state_shape(self) -> tuple[int, ...]:
        return tuple(self.decay.shape)

    def __call__(self, h_TD: Tensor, rows: RowStates, step: RecurrentStep) -> Tensor:
        x_TC, gate_TC = self.project(h_TD).float().chunk(2, -1)
        x_TC = self.convolution(x_TC, rows.tails, step)
        drive = self._drive(x_TC)

        def one(tokens: slice | Tensor, states_RCN: Tensor) -> Tensor:
            return selective_step(drive.part(tokens), self.decay, states_RCN)

        def many(tokens: slice, state_CN: Tensor) -> Tensor:
            return selective_scan(drive.part(tokens), self.decay, state_CN)

        y_TC = step.scatter(torch.empty_like(x_TC), rows.states, one, many)
        y_TC.addcmul_(x_TC, self.skip).mul_(F.silu(gate_TC))
        return self.out(y_TC.to(self.dtype))

    def _drive(self, x_TC: Tensor) -> Drive:
        sizes = [self.kind.step_rank, self.kind.state, self.kind.state]
        steps, into, out = self.select(x_TC.to(self.dtype)).float().split(sizes, -1)
        if self.kind.norm_eps is not None:
            steps, into, out = (
                F.rms_norm(each, each.shape[-1:], eps=self.kind.norm_eps) for each in (steps, into, out)
            )
        widened = self.widen(steps.to(self.dtype).contiguous()).float()
        return Drive(x_TC, F.softplus(widened + self.step_bias), into, out)


@dataclass(frozen=True, kw_only=True)
class Mamba2Mixer:
    """`decay` [H] is negative; `skip` [H] is what of its input a head passes on; `step_bias` [H]."""

    kind: Mamba2
    project: Linear  # to [gate, x, into, out, steps]
    convolution: CausalConvolution  # over x, into and out
    step_bias: Tensor
    decay: Tensor
    skip: Tensor
    norm_weight: Tensor
    out: Linear
    dtype: torch.dtype  # what linear layers take

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.project, self.out

    @property
    def tail_shape(self) -> tuple[int, ...]:
        return self.convolution.tail_shape

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.kind.heads, self.kind.head_dim, self.kind.state

    def __call__(self, h_TD: Tensor, rows: RowStates, step: RecurrentStep) -> Tensor:
        kind, convolved = self.kind, self.convolution.tail_shape[1]
        gate_TC, mixed, steps_TH = self.project(h_TD).float().split([kind.channels, convolved, kind.heads], -1)
        drive = self._drive(self.convolution(mixed, rows.tails, step), steps_TH)

        def one(tokens: slice | Tensor, states_RHPN: Tensor) -> Tensor:
            return paired_step(drive.part(tokens), self.decay, states_RHPN)

        def many(tokens: slice, state_HPN: Tensor) -> Tensor:
            return paired_scan(drive.part(tokens), self.decay, state_HPN)

        y_THP = step.scatter(torch.empty_like(drive.x), rows.states, one, many)
        y_TC = y_THP.addcmul_(drive.x, self.skip[:, None]).flatten(1)
        return self.out(self._gated_norm(y_TC, gate_TC).to(self.dtype))

    def _drive(self, mixed: Tensor, steps_TH: Tensor) -> Drive:
        kind, length = self.kind, len(mixed)
        x, into, out = mixed.split([kind.channels, kind.groups * kind.state, kind.groups * kind.state], -1)
        steps = F.softplus(steps_TH + self.step_bias).clamp_(*kind.step_limits)
        grouped = (length, kind.groups, kind.state)
        return Drive(x.reshape(length, kind.heads, kind.head_dim), steps, into.reshape(grouped), out.reshape(grouped))

    def _gated_norm(self, y_TC: Tensor, gate_TC: Tensor) -> Tensor:
        """RMSNorm within each group of channels, after the gate."""
        gated = (y_TC * F.silu(gate_TC)).unflatten(-1, (self.kind.groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=self.kind.norm_eps)
        return normed.flatten(1).mul_(self.norm_weight)
