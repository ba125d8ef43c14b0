"""Who multiplies by weights of bfloat16 where the CPU has tiles: what is chosen, what is said, and that it computes."""

from __future__ import annotations

import pytest
import torch
from millrace_kernels import Machine
from millrace_worker.layers import products
from millrace_worker.layers.linear import NativeLinear, can_pack
from millrace_worker.layers.products import Measured

TILES = {"avx512f", products.TILES}
FASTER = Measured(native=(1.0, 40.0), onednn=(1.1, 10.0))
SLOWER = Measured(native=(1.0, 40.0), onednn=(0.5, 39.0))
SLOW_AT_ONE = Measured(native=(1.0, 40.0), onednn=(2.0, 10.0))


@pytest.fixture(autouse=True)
def _onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "can_pack", lambda _: True)


def never(_: Machine) -> Measured:
    raise AssertionError("measured on a CPU without tiles")


def test_nothing_is_measured_without_tiles() -> None:
    machine = Machine(None, 1, 0, 0)
    assert products.settled(machine, {"avx512f", "avx512_bf16"}, never) is machine


@pytest.mark.parametrize(("measured", "keeps"), [(FASTER, False), (SLOWER, True), (SLOW_AT_ONE, True)])
def test_the_faster_one_multiplies(measured: Measured, keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, dict[str, object]]] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(products.logs, level, lambda text, **fields: said.append((text, fields)))
    machine = products.settled(Machine(None, 1, 0, 0), TILES, lambda _: measured)
    assert machine.multiplies is keeps
    text, fields = said[0]
    assert text == ("the kernels" if keeps else "oneDNN") + " multiply by weights of bfloat16"
    assert fields["onednn_many_rows_ms"] == measured.onednn[1]
    assert [f"MILLRACE_CPU_KERNELS={machine.level}" in text for text, _ in said[1:]] == ([] if keeps else [True])


def test_only_weights_of_bfloat16_are_given_away() -> None:
    machine = Machine(None, 1, 0, 0).without_products()
    weight = torch.zeros(64, 64)
    assert NativeLinear.suits(machine, weight)
    assert NativeLinear.supports(weight.to(torch.bfloat16))
    assert not NativeLinear.suits(machine, weight.to(torch.bfloat16))


@pytest.mark.skipif(not can_pack(torch.zeros(1, 1, dtype=torch.bfloat16)), reason="oneDNN has no bfloat16 here")
def test_both_are_really_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SIZE", 64)
    measured = products.compare(Machine(None, 1, 0, 0))
    assert all(value > 0 for value in (*measured.native, *measured.onednn))
