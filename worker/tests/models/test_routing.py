"""Every router chooses and weighs as transformers' does, and would not without any one part of its rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from millrace_worker.models.routing import routing
from millrace_worker.models.spec import Groups, InputSigmoid, Mlp, Moe, Score, SparseMixer, TopK
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.dbrx.modeling_dbrx import DbrxFFN
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeTopKRouter
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

HIDDEN, EXPERTS, CHOSEN, TOKENS = 16, 12, 4, 400
COMMON = {"hidden_size": HIDDEN, "num_hidden_layers": 1, "num_experts_per_tok": CHOSEN}
GROUPED = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
}
V3_GROUPS = Groups(count=4, chosen=2, best=2)


@dataclass(frozen=True)
class Rule:
    """`others`: our rule with one part of it left out."""

    router: Callable[[Any], nn.Module]
    config: tuple[str, dict[str, Any]]
    ours: TopK | SparseMixer | InputSigmoid
    others: tuple[TopK | SparseMixer, ...] = ()
    chosen: int = CHOSEN


def dbrx(c: Any) -> nn.Module:
    return DbrxFFN(c)


V3 = TopK(score=Score.SIGMOID, normalize=1.0, scale=1.5, corrected=True, groups=V3_GROUPS)
V2 = TopK(scale=1.5, groups=Groups(count=4, chosen=2, best=1))
ERNIE = TopK(normalize=1.0, corrected=True)
DBRX = {"d_model": HIDDEN, "ffn_config": {"moe_num_experts": EXPERTS, "moe_top_k": CHOSEN}}
DBRX["ffn_config"]["moe_normalize_expert_weights"] = 3.0
RULES = {
    "softmax, normalized": Rule(
        MixtralTopKRouter, ("mixtral", {"num_local_experts": EXPERTS}), TopK(normalize=1.0), (TopK(),)
    ),
    "softmax of the chosen": Rule(
        GraniteMoeTopKRouter, ("granitemoe", {"num_local_experts": EXPERTS}), TopK(normalize=1.0), (TopK(),)
    ),
    "softmax of the chosen, biased": Rule(
        GptOssTopKRouter, ("gpt_oss", {"num_local_experts": EXPERTS}), TopK(normalize=1.0)
    ),
    "softmax": Rule(Qwen2MoeTopKRouter, ("qwen2_moe", {"num_experts": EXPERTS}), TopK(), (TopK(normalize=1.0),)),
    "of another norm": Rule(dbrx, ("dbrx", DBRX), TopK(normalize=3.0), (TopK(normalize=1.0),)),
    "softmax, corrected": Rule(
        Ernie4_5_MoeTopKRouter,
        ("ernie4_5_moe", {"moe_num_experts": EXPERTS}),
        ERNIE,
        (replace(ERNIE, corrected=False), replace(ERNIE, normalize=None)),
    ),
    "softmax, groups": Rule(
        DeepseekV2TopkRouter,
        ("deepseek_v2", GROUPED | {"n_routed_experts": EXPERTS, "topk_method": "group_limited_greedy"}),
        V2,
        (replace(V2, groups=None), replace(V2, groups=V3_GROUPS), replace(V2, scale=1.0)),
    ),
    "sigmoid, corrected, groups": Rule(
        DeepseekV3TopkRouter,
        ("deepseek_v3", GROUPED | {"n_routed_experts": EXPERTS}),
        V3,
        (
            replace(V3, groups=None),
            replace(V3, groups=Groups(count=4, chosen=2, best=1)),
            replace(V3, corrected=False),
            replace(V3, normalize=None),
            replace(V3, scale=1.0),
            replace(V3, score=Score.SOFTMAX),
        ),
    ),
    "sparse mixer": Rule(
        PhimoeTopKRouter,
        ("phimoe", {"num_local_experts": EXPERTS, "router_jitter_noise": 0.3}),
        SparseMixer(jitter=0.3),
        (SparseMixer(jitter=0.1), TopK(normalize=1.0)),
        chosen=2,
    ),
}


def config(name: str, values: dict[str, Any]) -> Any:
    return CONFIG_MAPPING[name](**values)


def dense(experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    return torch.zeros(len(experts_TK), EXPERTS).scatter(1, experts_TK, weights_TK)


def made(rule: Rule) -> tuple[nn.Module, Tensor | None]:
    """A router of transformers with random weights, and its correction."""
    name, values = rule.config
    router = rule.router(config(name, values if name == "dbrx" else COMMON | values)).eval()
    for tensor in router.state_dict(keep_vars=True).values():
        tensor.data = torch.randn(tensor.shape) * (0.4 if tensor.shape[-1] == HIDDEN else 0.2)
    found = [tensor for key, tensor in router.state_dict().items() if key.endswith("e_score_correction_bias")]
    return router, found[0].flatten() if found else None


def theirs(router: nn.Module, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and dense weights."""
    if isinstance(router, DbrxFFN):
        logits = router.router(x_TD)
        weights, experts = router.route_tokens_to_experts(logits)
    else:
        logits, weights, experts = router(x_TD)
    return logits, dense(experts, weights)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_that_of_transformers(name: str) -> None:
    rule = RULES[name]
    router, correction = made(rule)
    with torch.no_grad():
        logits, expected = theirs(router, torch.randn(TOKENS, HIDDEN))

    def ours(each: TopK | SparseMixer | InputSigmoid) -> Tensor:
        corrected = isinstance(each, TopK) and each.corrected
        moe = Moe(num_experts=EXPERTS, top_k=rule.chosen, expert=Mlp(size=1, activation="silu"), routing=each)
        return dense(*routing(moe, correction if corrected else None)(logits.float()))

    torch.testing.assert_close(ours(rule.ours), expected, atol=1e-6, rtol=1e-5)
    for other in rule.others:
        assert (ours(other) - expected).abs().max() > 1e-3, other


def test_the_sigmoid_of_an_input_is_that_of_transformers() -> None:
    router = Llama4Router(config("llama4_text", COMMON | {"num_local_experts": EXPERTS}))
    with torch.no_grad():
        expected, logits = router(torch.randn(TOKENS, HIDDEN))
    moe = Moe(num_experts=EXPERTS, top_k=CHOSEN, expert=Mlp(size=1, activation="silu"), routing=InputSigmoid())
    torch.testing.assert_close(dense(*routing(moe, None)(logits)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_tokens_experts_do_not_depend_on_its_place(name: str) -> None:
    """To the last bit: what a seed gives rests on it."""
    rule = RULES[name]
    _, correction = made(rule)
    moe = Moe(num_experts=EXPERTS, top_k=rule.chosen, expert=Mlp(size=1, activation="silu"), routing=rule.ours)
    route, logits = routing(moe, correction), torch.randn(TOKENS, EXPERTS)
    together = route(logits)
    for token in range(TOKENS):
        alone = route(logits[token : token + 1].clone())
        assert all(torch.equal(one[0], of_all[token]) for one, of_all in zip(alone, together, strict=True))
