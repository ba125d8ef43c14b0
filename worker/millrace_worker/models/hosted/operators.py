"""Our operators in the place of a model's linear layers, norms and gated MLPs: the model's own code calls them.

Only what is exactly one of them is replaced, and only after it gave the same values on random inputs. A replaced
module keeps its parameters' shapes and dtypes, but not their values, which live on in the operator alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace_worker.layers.linear import Epilogue, Linear, NativeLinear, make_linear, num_columns
from millrace_worker.layers.norm import NativeNorm, NormWeights
from millrace_worker.layers.operators import MAX_TIED_COPY_BYTES
from millrace_worker.workspace import FreshRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from millrace_worker.cpu_kernels import Machine

PROBE_ROWS = 3
PROBE_MEAN = 1.0
PROBE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
NORM_DTYPES = (torch.float32, torch.bfloat16)  # of the native ones
EPSILONS = ("variance_epsilon", "eps")
MLP_PARTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Replacer:
    """Replaces for one CPU, with its kernels where there are any."""

    machine: Machine | None
    dtype: torch.dtype

    def replace(self, model: PreTrainedModel, run: Callable[[], Tensor]) -> dict[str, str]:
        """Which operators there are now, for the log. `run` is a forward pass of the model."""
        if _reads_weights_itself(model, run):
            return {"linear": "transformers"}
        kept = _shared_weights(model)
        gated = [each for each in model.modules() if self._replace_gated_mlp(each, kept)]
        linears = [name for each in model.modules() if (name := self._replace_linear(each, kept))]
        norms = [each for each in model.modules() if self._replace_norm(each)]
        found = {"linear": ", ".join(sorted(set(linears))) or "transformers"}
        found["gated MLP"] = "fused" if gated else "transformers"
        found["norm"] = f"native ({self.machine.level})" if norms and self.machine else "transformers"
        return found

    def _replace_linear(self, module: nn.Module, kept: set[int]) -> str | None:
        if type(module) is not nn.Linear or not self._is_plain(module):
            return None
        shared = id(module) in kept
        if shared and module.weight.nbytes > MAX_TIED_COPY_BYTES:
            return None
        linear = self._linear(module.weight.data, _data(module.bias), None)
        if not _same(module.forward, probe := _flat(linear), module.in_features, self.dtype):
            return None
        module.__dict__["forward"] = probe
        if not shared:
            _drop(module)
        return linear.name

    def _replace_gated_mlp(self, module: nn.Module, kept: set[int]) -> bool:
        """down(activation(gate(x)) * up(x)): gate and up become one pass."""
        parts = dict(module.named_children())
        linears = [parts.get(name) for name in MLP_PARTS]
        gate, up, down = linears
        if self.machine is None or not all(type(each) is nn.Linear for each in linears):
            return False
        assert isinstance(gate, nn.Linear)
        assert isinstance(up, nn.Linear)
        assert isinstance(down, nn.Linear)
        all_plain = all(self._is_plain(each) and id(each) not in kept for each in (gate, up, down))
        if not all_plain or (gate.bias is None) != (up.bias is None):
            return False
        epilogue = self._activation(parts)
        weight = torch.cat((gate.weight.data, up.weight.data))
        if epilogue is None or not NativeLinear.suits(self.machine, weight, epilogue):
            return False
        bias = None if gate.bias is None else torch.cat((gate.bias.data, up.bias.data))
        first, second = self._linear(weight, bias, epilogue), self._linear(down.weight.data, _data(down.bias), None)
        fused = _flat(lambda x_TD: second(first(x_TD)))
        if not _same(module.forward, fused, gate.in_features, self.dtype):
            return False
        module.__dict__["forward"] = fused
        for each in (gate, up, down):
            _drop(each)
        return True

    def _activation(self, parts: dict[str, nn.Module]) -> Epilogue | None:
        """The activation of an MLP, known by what it computes."""
        others = [module for name, module in parts.items() if name not in MLP_PARTS]
        if len(others) != 1:
            return None
        x = torch.linspace(-4, 4, 33)
        known: dict[str, Callable[[Tensor], Tensor]] = {
            "silu": F.silu,
            "gelu": F.gelu,
            "gelu_tanh": lambda each: F.gelu(each, approximate="tanh"),
            "relu": F.relu,
        }
        found = others[0](x)
        names = (name for name, each in known.items() if torch.allclose(each(x), found, atol=1e-6))
        return next((Epilogue(name, True) for name in names), None)

    def _replace_norm(self, module: nn.Module) -> bool:
        """An RMSNorm or LayerNorm of one vector, known by what it computes."""
        weight = getattr(module, "weight", None)
        eps = next((getattr(module, name) for name in EPSILONS if hasattr(module, name)), None)
        if self.machine is None or self.dtype not in NORM_DTYPES or not isinstance(eps, float):
            return False
        if "Norm" not in type(module).__name__ or not isinstance(weight, nn.Parameter) or weight.ndim != 1:
            return False
        bias = _data(getattr(module, "bias", None))
        for rms, scale in ((True, weight.data), (True, weight.data.float() + 1.0), (False, weight.data)):
            weights = NormWeights(rms, eps, scale.float(), None if bias is None else bias.float())
            if (rms and bias is not None) or not NativeNorm.supports(weights):
                continue
            native = NativeNorm(self.machine, weights, FreshRows(len(scale), self.dtype))
            norm = _flat(lambda x_TD, native=native: native(x_TD.float()))
            if _same(module.forward, norm, len(scale), self.dtype):
                module.__dict__["forward"] = norm
                return True
        return False

    def _linear(self, weight: Tensor, bias: Tensor | None, epilogue: Epilogue | None) -> Linear:
        if self.machine is None or not NativeLinear.suits(self.machine, weight, epilogue):
            return make_linear(weight, bias, epilogue)
        return NativeLinear(self.machine, weight, bias, FreshRows(num_columns(weight, epilogue), self.dtype), epilogue)

    def _is_plain(self, module: nn.Linear) -> bool:
        """A weight on this CPU, and nothing around the call."""
        weight = module.weight
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        plain = weight.device.type == "cpu" and weight.dtype is self.dtype and type(weight) is nn.Parameter
        return plain and not hooked


def _data(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.data


def _flat(compute: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """As a module of transformers is called: any leading dimensions."""

    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return compute(rows).view(*x.shape[:-1], -1)

    return forward


@torch.inference_mode()
def _same(own: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor], width: int, dtype: torch.dtype) -> bool:
    # Off centre: of many values around zero, LayerNorm and RMSNorm make nearly the same.
    x = (torch.randn(1, PROBE_ROWS, width, generator=torch.Generator().manual_seed(width)) + PROBE_MEAN).to(dtype)
    try:
        expected, found = own(x).float(), ours(x).float()
    except Exception:  # it takes more than one argument, or returns more than one value
        return False
    tolerance = PROBE_TOLERANCE[dtype] * float(expected.abs().max().clamp_min(1e-6))
    return expected.shape == found.shape and bool((expected - found).abs().max() <= tolerance)


def _drop(module: nn.Linear) -> None:
    """The values live in the operator now; shape and dtype stay for whoever asks."""
    module.weight = nn.Parameter(module.weight.data.to("meta"), requires_grad=False)


def _reads_weights_itself(model: PreTrainedModel, run: Callable[[], Tensor]) -> bool:
    """Whether a forward pass reads the weight of a linear layer other than by calling the layer."""
    linears = [each for each in model.modules() if type(each) is nn.Linear and "forward" not in each.__dict__]
    stored = [each.weight for each in linears]
    try:
        for linear, weight in zip(linears, stored, strict=True):
            linear.__dict__["forward"] = partial(_linear_of, weight, linear.bias)
            linear.weight = nn.Parameter(weight.data.to("meta"), requires_grad=False)
        return run().device.type == "meta"
    except Exception:
        return True
    finally:
        for linear, weight in zip(linears, stored, strict=True):
            linear.weight = weight
            linear.__dict__.pop("forward", None)


def _linear_of(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def _shared_weights(model: PreTrainedModel) -> set[int]:
    """Ids of linear layers whose weight belongs to another module too (tied embeddings)."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    return {id(module) for modules in owners.values() if len(modules) > 1 for module in modules}
