"""What the benchmark of two tenants makes of answers, and that its requests carry their tenant's key."""

from __future__ import annotations

from benchmarks import flood, tenants
from benchmarks.flood import Answer
from benchmarks.tenants import Round


def answer(seconds: float, status: int = 200) -> Answer:
    is_whole = status == 200
    return Answer(status, "" if is_whole else "1", "", is_whole, 1, 100.0, 100.0 + seconds / 2, 100.0 + seconds)


def verdicts(alone: float, beside: float, status: int = 200) -> dict[str, bool | None]:
    one = Round([answer(alone)] * 9, [answer(beside)] * 9 + [answer(beside, status)], [answer(1.0), answer(0.1, 429)])
    return {figure.name: figure.is_good for figure in tenants.figures([one], 1.0, 0.0)}


def test_the_steady_tenant_may_be_half_as_slow_again_and_no_more() -> None:
    assert verdicts(0.1, 0.14)["its latency, p50 / p99"]
    assert verdicts(0.1, 0.16)["its latency, p50 / p99"] is False


def test_none_of_its_requests_may_be_refused() -> None:
    assert verdicts(0.1, 0.1)["its requests refused or cut"]
    assert verdicts(0.1, 0.1, status=429)["its requests refused or cut"] is False


def test_a_request_carries_its_key() -> None:
    head = flood.ask("/generate", {"inputs": "a"}, 1, "sk-1").data.partition(b"\r\n\r\n")[0]
    assert b"\r\nAuthorization: Bearer sk-1\r\n" in head + b"\r\n"
    assert b"Authorization" not in flood.ask("/generate", {"inputs": "a"}, 1).data
