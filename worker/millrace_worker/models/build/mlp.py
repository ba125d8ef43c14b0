"""The MLP of one rank: columns of the first projection, the same rows of the second."""

from __future__ import annotations

from millrace_worker.layers.linear import ClampedGlu, Epilogue
from millrace_worker.models import spec as kinds
from millrace_worker.models.build.parts import Parts
from millrace_worker.models.decoder import MlpLayer
from millrace_worker.models.sharding import up_pieces
from millrace_worker.workspace import Role


def build_mlp(parts: Parts, at: str, mlp: kinds.Mlp) -> MlpLayer:
    hidden, weights, linear = parts.spec.hidden, parts.weights, parts.operators.linear
    up = weights.columns(up_pieces(parts.names, mlp, weights.rank, at), hidden, bias=mlp.bias)
    part = weights.rank.columns(mlp.size, "columns of the MLP")
    down = weights.rows(at + parts.names.down, (hidden, mlp.size), part, bias=mlp.bias)
    return MlpLayer(up=linear(*up, Role.UP, epilogue(mlp)), down=linear(*down, Role.MLP_DELTA))


def epilogue(mlp: kinds.Mlp) -> Epilogue:
    """What follows the first projection."""
    activation = mlp.activation
    if isinstance(activation, kinds.ClampedGlu):
        return Epilogue(ClampedGlu(activation.alpha, activation.limit), mlp.gated)
    return Epilogue(activation, mlp.gated)
