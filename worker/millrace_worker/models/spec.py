"""What an architecture is. Pure data: it holds no weights, no names of tensors, and nothing about devices or ranks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from millrace_worker.models.scaling import Scaling

Activation = Literal["silu", "relu", "relu2", "gelu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class RmsNorm:
    eps: float
    unit_offset: bool = False  # Gemma stores `weight - 1`
    weight: bool = True  # False: all ones, not stored


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    eps: float
    bias: bool = True
    unit_offset: bool = False  # Nemotron stores `weight - 1`
    weight: bool = True  # False: all ones, not stored


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary embedding (Su et al. 2021) of the leading `dim` dimensions of each head, paired as (i, i + dim / 2)."""

    theta: float
    dim: int
    interleaved: bool = False  # paired as (2 i, 2 i + 1) instead
    scaling: Scaling | None = None


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """A bias on the scores that falls linearly with the distance (Press et al. 2021)."""

    max_bias: float = 8.0
    scaled: bool = False  # Falcon-RW multiplies the bias by the softmax scale too


class Residual(Enum):
    """How a layer's two blocks join the residual stream."""

    SEQUENTIAL = auto()  # x += attn(norm(x)); x += mlp(norm(x))
    PARALLEL = auto()  # x += attn(norm_a(x)) + mlp(norm_b(x))
    PARALLEL_SHARED_NORM = auto()  # h = norm(x); x += attn(h) + mlp(h)
    NORMED_STREAM = auto()  # x = norm(x + attn(x)); x = norm(x + mlp(x)): the transformer of 2017


@dataclass(frozen=True, kw_only=True)
class HeadNorm:
    """Each head of q and of k is normalized by itself."""

    norm: RmsNorm | LayerNorm
    own_weights: bool = False  # every head has weights of its own; otherwise all heads of q share one, and those of k
    after_rotation: bool = False


@dataclass(frozen=True, kw_only=True)
class WidthNorm:
    """All heads of q are normalized as one vector, and all heads of k, before the rotation."""

    norm: RmsNorm


@dataclass(frozen=True, kw_only=True)
class QueryGrowth:
    """Queries grow with their position p: times 1 + beta log(1 + floor((p + offset) / step)) (Llama 4, Ministral 3)."""

    beta: float
    step: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Attention:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    position: Rotary | Alibi | None  # None: positions are in the embedding, or nowhere
    scale: float | None = None  # None: head_dim ** -0.5
    window: int | None = None  # a query sees this many positions, its own included
    chunk: int | None = None  # the text is cut into chunks of this many positions: a query sees only its own
    softcap: float | None = None
    qk_norm: HeadNorm | WidthNorm | None = None
    clip: float | None = None  # q, k and v are kept within [-clip, clip] (after `qk_norm`, before the rotation)
    sinks: bool = False  # each head has a score that takes part in the softmax, and no value (gpt-oss)
    query_growth: QueryGrowth | None = None
    qkv_bias: bool = False
    out_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class ClampedGlu:
    """gate * sigmoid(alpha * gate) * (up + 1), the gate at most `limit`, up within -limit .. limit (gpt-oss)."""

    alpha: float
    limit: float


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Keys and values of all heads are made of one small vector per token, its latent; the rotated part of the key is
    one for all heads (DeepSeek-AI 2024, DeepSeek-V2). A head's query and key are a plain part, then a rotated one."""

    num_heads: int
    query_latent_dim: int | None  # None: queries have no latent
    latent_dim: int
    plain_dim: int
    rotated_dim: int
    value_dim: int
    position: Rotary
    scale: float
    norm: RmsNorm  # of the latents
    bias: bool = False  # of the projections to the latents, and of the last one


@dataclass(frozen=True, kw_only=True)
class Mlp:
    size: int
    activation: Activation | ClampedGlu
    gated: bool = True  # down(activation(gate(x)) * up(x)); otherwise down(activation(up(x)))
    bias: bool = False


class Score(Enum):
    """What a router makes of an expert's logit."""

    SOFTMAX = auto()  # over all experts
    SIGMOID = auto()


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Experts stand in `count` groups; only those of the `chosen` best groups can be chosen. A group is as good as the
    sum of its `best` best experts (DeepSeek V2: 1, V3: 2)."""

    count: int
    chosen: int
    best: int


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The experts with the best scores, weighted by them.

    A softmax over the chosen logits only is the same as one over all, normalized.
    """

    score: Score = Score.SOFTMAX
    normalize: float | None = None  # the chosen scores are divided by their norm of this order (1: their sum)
    scale: float = 1.0
    corrected: bool = False  # a stored bias is added to the scores for the choice, not for the weights
    groups: Groups | None = None


@dataclass(frozen=True, kw_only=True)
class SparseMixer:
    """Two experts, each weighted by a softmax over those whose logits are near its own (Liu et al. 2024)."""

    jitter: float


@dataclass(frozen=True, kw_only=True)
class InputSigmoid:
    """The best logits; their sigmoid scales what the experts take, not what they give (Llama 4)."""


@dataclass(frozen=True, kw_only=True)
class Moe:
    """A mixture of experts (Shazeer et al. 2017): each token is computed by `top_k` of them, chosen by a router."""

    num_experts: int
    top_k: int
    expert: Mlp
    routing: TopK | SparseMixer | InputSigmoid
    router_bias: bool = False
    shared: Mlp | None = None  # computes every token
    shared_gate: bool = False  # what it gives is multiplied by the sigmoid of one further logit


FeedForward = Mlp | Moe  # the kinds of a layer's second block


@dataclass(frozen=True, kw_only=True)
class Layer:
    attention: Attention | LatentAttention
    mlp: FeedForward
    norm: RmsNorm | LayerNorm
    residual: Residual = Residual.SEQUENTIAL
    pre_norm: bool = True  # False: blocks read the stream as it is (OLMo 2, with `post_norm`)
    post_norm: bool = False  # the output of each block is normalized: with `pre_norm` Gemma 2's sandwich
    residual_scale: float = 1.0  # of what each block adds to the stream


@dataclass(frozen=True, kw_only=True)
class Decoder:
    hidden: int
    vocab: int
    max_positions: int
    layers: tuple[Layer, ...]
    final_norm: RmsNorm | LayerNorm | None
    tied: bool  # the head's weight is the embedding's
    embed_width: int | None = None  # of the table and the head, where it is not `hidden`: a projection on either side
    embed_scale: float = 1.0
    learned_positions: bool = False
    position_offset: int = 0  # rows of the learned table before that of position 0
    embed_norm: RmsNorm | LayerNorm | None = None  # of the embeddings, before the first layer
    head_bias: bool = False
    head_normed: bool = False  # rows of the head's weight are brought to length 1 (Baichuan 2)
    logit_scale: float = 1.0
    logit_softcap: float | None = None
