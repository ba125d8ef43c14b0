"""The demo model: a plain Llama decoder whose parameter names are those of Llama checkpoints.

Shapes: B sequences, T positions, D hidden, H heads, d head width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 5
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 704
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def checkpoint_config(self, bos: int, eos: int) -> dict[str, object]:
        """The `config.json` of this model in the Hugging Face layout."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab_size,
        }


def rotary_table(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin [T, d] of the rotary angles (Su et al. 2021), first and second half of d paired."""
    inverse = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angles = torch.outer(torch.arange(length).float(), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x_BHTd: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = table
    first, second = x_BHTd.chunk(2, dim=-1)
    return x_BHTd * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)

        group = self.shape.num_heads // self.shape.num_kv_heads
        q = rotate(heads(self.q_proj(x_BTD)), table)
        k = rotate(heads(self.k_proj(x_BTD)), table).repeat_interleave(group, dim=1)
        v = heads(self.v_proj(x_BTD)).repeat_interleave(group, dim=1)
        mixed_BHTd = functional.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        return self.o_proj(mixed_BHTd.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x_BTD: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        h = x_BTD + self.self_attn(self.input_layernorm(x_BTD), table)
        return h + self.mlp(self.post_attention_layernorm(h))


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)


class Llama(nn.Module):
    """Ids [B, T] to logits [B, T, V]; the output matrix is the embedding (tied)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        self._initialise()

    def _initialise(self) -> None:
        """GPT-2's: normal with 0.02, what writes into the residual stream scaled down by its number of writes."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = 2 * self.shape.num_layers if writes_residual else 1
                nn.init.normal_(parameter, std=0.02 * depth**-0.5)

    def forward(self, ids_BT: Tensor) -> Tensor:
        table = rotary_table(self.shape, ids_BT.shape[1])
        h = self.model.embed_tokens(ids_BT)
        for layer in self.model.layers:
            h = layer(h, table)
        return functional.linear(self.model.norm(h), self.model.embed_tokens.weight)
