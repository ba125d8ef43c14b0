"""Norms of q and k, clipping and both ways to pair rotated dimensions, against their formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from millrace_worker.attention.interface import Heads, ScoreRule
from millrace_worker.attention.rotary import Rotation, rotate_
from millrace_worker.distributed import Group
from millrace_worker.layers.norm import RmsNorm
from millrace_worker.layers.qkv import HeadLayerNorm, Places, QkvSteps, QkWidthNorm, QueryGrowth

HEADS = Heads(layer=0, num_heads=4, num_kv_heads=2, head_dim=8, scale=1.0, rule=ScoreRule(), pairs="neighbours")


def turns(frequencies: torch.Tensor, positions: torch.Tensor) -> Rotation:
    angles = torch.outer(positions, frequencies)
    cos, sin = angles.cos(), angles.sin()
    return Rotation(torch.cat((cos, cos), dim=1)[:, None], torch.cat((-sin, sin), dim=1)[:, None])


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
    rotation = turns(frequencies, torch.tensor([3.0, 8.0]))
    x = torch.randn(2, 6, 8)
    angles = torch.tensor([3.0, 8.0])[:, None, None] * frequencies
    turned = torch.view_as_complex(x[..., :4].unflatten(-1, (2, 2))) * torch.polar(torch.ones(()), angles)
    expected = torch.cat((torch.view_as_real(turned).flatten(-2), x[..., 4:]), dim=-1)
    rotate_(x, rotation, "neighbours")
    torch.testing.assert_close(x, expected)


def test_the_steps_keep_their_order() -> None:
    """Norm, clipping, and the rotation is left to the backend; or the rotation first, and nothing of it is left."""
    rotation = turns(torch.rand(4), torch.arange(3.0))
    norm, qkv = RmsNorm(torch.randn(6, 8), 1e-5), torch.randn(3, 64)
    expected = qkv.view(3, 8, 8).clone()
    expected[:, :6] = norm(expected[:, :6])
    found = qkv.clone()
    assert QkvSteps(HEADS, norm, 0.5)(found, rotation, Places([], [])) is rotation
    torch.testing.assert_close(found, expected.clamp(-0.5, 0.5).flatten(1))
    expected = qkv.view(3, 8, 8).clone()
    rotate_(expected[:, :6], rotation, "neighbours")
    expected[:, :6] = norm(expected[:, :6])
    found = qkv.clone()
    assert QkvSteps(HEADS, norm, rotates_first=True)(found, rotation, Places([], [])) is None
    torch.testing.assert_close(found, expected.flatten(1))


def test_queries_grow_and_keys_do_not() -> None:
    factors = QueryGrowth(0.1, 8, 1)(torch.tensor([0, 7, 31]))
    torch.testing.assert_close(factors.flatten(), 1 + 0.1 * torch.tensor([0.0, 1.0, 4.0]).log1p())
    qkv = torch.randn(3, 64)
    found = qkv.clone()
    QkvSteps(HEADS, growth=0)(found, None, Places([], [factors]))
    torch.testing.assert_close(found[:, :32], qkv[:, :32] * factors[:, 0])
    assert torch.equal(found[:, 32:], qkv[:, 32:])
