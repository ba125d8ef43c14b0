"""The checkpoint of 4 bits, read by GPTQ's formula: `(code - (stored zero + 1)) * scale`."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import fewer_bits


def test_4_bits_are_the_nearest_to_the_weights() -> None:
    weight = torch.randn(24, 2 * fewer_bits.GROUP)
    made = {name.rpartition(".")[2]: t.numpy() for name, t in fewer_bits.packed("m.layers.0.q.weight", weight).items()}
    inputs = np.arange(weight.shape[1])
    words = made["qweight"].view(np.uint32)[inputs // 8]
    codes = (words >> (4 * (inputs % 8)).astype(np.uint32)[:, None]) & 15
    outputs = np.arange(len(weight))
    zeros = (made["qzeros"].view(np.uint32)[:, outputs // 8] >> (4 * (outputs % 8)).astype(np.uint32)) & 15
    scales = made["scales"].astype(np.float32)[made["g_idx"]]
    read = (codes.astype(np.float32) - (zeros[made["g_idx"]] + 1)) * scales
    assert np.all(np.abs(read.T - weight.numpy()) <= 0.501 * scales.T)


def test_only_matrices_of_layers_are_packed() -> None:
    for name, shape in (("lm_head.weight", (8, 128)), ("model.layers.0.norm.weight", (128,))):
        tensor = torch.randn(shape)
        assert fewer_bits.packed(name, tensor) == {name: tensor}
