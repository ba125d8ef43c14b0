"""Norms of q and k, clipping and both ways to pair rotated dimensions, against their formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from millrace_worker.attention.interface import Heads, ScoreRule
from millrace_worker.attention.rotary import RotaryTable, rotate_
from millrace_worker.distributed import Group
from millrace_worker.layers.norm import RmsNorm
from millrace_worker.layers.qkv import HeadLayerNorm, QkvSteps, QkWidthNorm

HEADS = Heads(layer=0, num_heads=4, num_kv_heads=2, head_dim=8, scale=1.0, rule=ScoreRule(), pairs="neighbours")


def test_a_head_is_normalized_by_itself() -> None:
    x, weight, bias = torch.randn(5, 6, 8), torch.randn(6, 8), torch.randn(6, 8)
    expected = torch.stack([F.layer_norm(x[:, i], (8,), weight[i], bias[i], 1e-5) for i in range(6)], dim=1)
    torch.testing.assert_close(HeadLayerNorm(weight, bias, 1e-5)(x), expected)


def test_all_heads_are_normalized_as_one_vector() -> None:
    x, q, k = torch.randn(5, 6, 8), torch.randn(32), torch.randn(16)
    expected = torch.cat(
        (F.rms_norm(x[:, :4].flatten(1), (32,), q, 1e-5), F.rms_norm(x[:, 4:].flatten(1), (16,), k, 1e-5)), 1
    )
    found = QkWidthNorm(q, k, (32, 16), 1e-5, Group())(x.clone())
    torch.testing.assert_close(found.flatten(1), expected)


def test_neighbours_turn_together() -> None:
    """As complex numbers: (x[2i] + i x[2i+1]) e^(i angle); the dimensions behind them stay."""
    frequencies = torch.rand(2)
    rotation = RotaryTable(frequencies, 9, torch.float32).gather(torch.tensor([3, 8]))
    x = torch.randn(2, 6, 8)
    angles = torch.tensor([3.0, 8.0])[:, None, None] * frequencies
    turned = torch.view_as_complex(x[..., :4].unflatten(-1, (2, 2))) * torch.polar(torch.ones(()), angles)
    expected = torch.cat((torch.view_as_real(turned).flatten(-2), x[..., 4:]), dim=-1)
    rotate_(x, rotation, "neighbours")
    torch.testing.assert_close(x, expected)


def test_the_steps_keep_their_order() -> None:
    """Norm, clipping, and the rotation is left to the backend; or the rotation first, and nothing of it is left."""
    rotation = RotaryTable(torch.rand(4), 9, torch.float32).gather(torch.arange(3))
    norm, qkv = RmsNorm(torch.randn(6, 8), 1e-5), torch.randn(3, 64)
    expected = qkv.view(3, 8, 8).clone()
    expected[:, :6] = norm(expected[:, :6])
    found = qkv.clone()
    assert QkvSteps(HEADS, norm, 0.5)(found, rotation) is rotation
    torch.testing.assert_close(found, expected.clamp(-0.5, 0.5).flatten(1))
    expected = qkv.view(3, 8, 8).clone()
    rotate_(expected[:, :6], rotation, "neighbours")
    expected[:, :6] = norm(expected[:, :6])
    found = qkv.clone()
    assert QkvSteps(HEADS, norm, None, rotates_first=True)(found, rotation) is None
    torch.testing.assert_close(found, expected.flatten(1))
