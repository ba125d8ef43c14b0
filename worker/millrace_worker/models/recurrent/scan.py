"""The recurrences, over many tokens of one sequence and over one token of many sequences. All in float32.

T tokens, R rows, C channels, N values of a channel's state, H heads of P channels each, G groups of heads.
A state is changed in place: it goes on from where the sequence stands to where it stands after the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# What the states of one block of tokens may take: larger blocks fall out of the cache.
SELECTIVE_BLOCK_BYTES = 8 << 20
# Tokens of a block whose pairs are multiplied with one another: that work grows with the square of the block.
PAIR_BLOCK = 64


@dataclass(frozen=True)
class Drive:
    """What the tokens do to a state: `x` [T, C] or [T, H, P] enters by `steps` [T, C] or [T, H], along `into` [T, N] or
    [T, G, N]; `out` of the same shape reads it."""

    x: Tensor
    steps: Tensor
    into: Tensor
    out: Tensor

    def part(self, tokens: slice | Tensor) -> Drive:
        return Drive(self.x[tokens], self.steps[tokens], self.into[tokens], self.out[tokens])

    def __len__(self) -> int:
        return len(self.x)


def selective_scan(drive: Drive, decay_CN: Tensor, state_CN: Tensor) -> Tensor:
    """[T, C]: h = exp(step * decay) * h + step * x * into, y = h . out, one token after the other.

    What a token gets has the same bits as from `selective_step`.
    """
    y_TC = torch.empty_like(drive.x)
    length = max(1, SELECTIVE_BLOCK_BYTES // (4 * decay_CN.numel()))
    for at in range(0, len(drive), length):
        block = drive.part(slice(at, at + length))
        kept, states = _selective_terms(block, decay_CN)
        before = state_CN
        for keep, state in zip(kept, states, strict=True):
            before = state.addcmul_(keep, before)
        state_CN.copy_(before)
        y_TC[at : at + length] = (states * block.out[:, None, :]).sum(-1)
    return y_TC


def selective_step(drive: Drive, decay_CN: Tensor, states_RCN: Tensor) -> Tensor:
    """[R, C]: as `selective_scan`, one token of each of R sequences."""
    kept, added = _selective_terms(drive, decay_CN)
    states_RCN.copy_(added.addcmul_(kept, states_RCN))
    return (added * drive.out[:, None, :]).sum(-1)


def _selective_terms(drive: Drive, decay_CN: Tensor) -> tuple[Tensor, Tensor]:
    """[T, C, N] each: what share of the state a token keeps, and what it adds."""
    kept = torch.exp_(drive.steps[:, :, None] * decay_CN)
    return kept, (drive.steps * drive.x)[:, :, None] * drive.into[:, None, :]


def paired_scan(drive: Drive, decay_H: Tensor, state_HPN: Tensor) -> Tensor:
    """[T, H, P]: h = exp(step * decay) * h + step * x * into, y = h . out, where all of a head share step and decay.

    Within a block every token takes from every earlier one directly, by products of matrices (Dao and Gu 2024,
    section 6); only between blocks there is a state.
    """
    blocks = (drive.part(slice(at, at + PAIR_BLOCK)) for at in range(0, len(drive), PAIR_BLOCK))
    return torch.cat([_paired_block(block, decay_H, state_HPN) for block in blocks])


def _paired_block(drive: Drive, decay_H: Tensor, state_HPN: Tensor) -> Tensor:
    length, heads, width = drive.x.shape
    groups = drive.into.shape[1]
    # Logarithms of what share of a state is left: after each token of that before the block, and of what came in with
    # each earlier one. These are sums of their own: differences of large sums would lose what they differ by.
    logs_HL = (drive.steps * decay_H).t()
    left_HL = logs_HL.cumsum(1)
    not_after_LL = torch.ones(length, length, dtype=torch.bool, device=logs_HL.device).triu_()
    between_HLL = logs_HL[:, :, None].expand(-1, -1, length).masked_fill(not_after_LL, 0).cumsum(1)
    weights_HLL = between_HLL.exp().tril_()
    into_GLN, out_GLN = drive.into.transpose(0, 1), drive.out.transpose(0, 1)
    weights_HLL.view(groups, -1, length, length).mul_((out_GLN @ into_GLN.mT)[:, None])
    x_HLP = (drive.x * drive.steps[:, :, None]).transpose(0, 1)

    before = state_HPN.view(groups, -1, state_HPN.shape[-1])
    carried_HLP = (out_GLN @ before.mT).view(groups, length, -1, width).transpose(1, 2).reshape(heads, length, width)
    y_HLP = torch.baddbmm(carried_HLP * left_HL.exp()[:, :, None], weights_HLL, x_HLP)

    entering = (x_HLP * between_HLL[:, -1].exp()[:, :, None]).mT.reshape(groups, -1, length)
    state_HPN.mul_(left_HL[:, -1].exp()[:, None, None]).add_((entering @ into_GLN).view_as(state_HPN))
    return y_HLP.transpose(0, 1)


def paired_step(drive: Drive, decay_H: Tensor, states_RHPN: Tensor) -> Tensor:
    """[R, H, P]: as `paired_scan`, one token of each of R sequences."""
    rows, heads, width, _ = states_RHPN.shape
    groups = drive.into.shape[1]
    states_RHPN.mul_((drive.steps * decay_H).exp_()[:, :, None, None])
    states = states_RHPN.view(rows, groups, -1, states_RHPN.shape[-1])
    x = (drive.x * drive.steps[:, :, None]).view(rows, groups, -1, 1)
    states.addcmul_(x, drive.into[:, :, None, :])
    return (states @ drive.out[:, :, :, None]).view(rows, heads, width)
