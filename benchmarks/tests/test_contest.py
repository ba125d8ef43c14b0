"""A contest's rounds, its failures and its tables, with sides whose seconds are known."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks import contest, models, processes, report
from benchmarks.contest import Answer, Limits, Looks, Point, Side
from benchmarks.peers import __main__ as peers

POINTS = [Point(128, 32, 1), Point(128, 32, 4)]


@dataclass
class Scripted:
    """Takes `seconds` for a batch, or fails at the given one; notes the prompts and the state of its process."""

    seconds: float
    process: subprocess.Popen[str]
    fails_at: int = -1
    seen: list[list[str]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def ask(self, prompts: list[str], new_tokens: int) -> Answer:
        self.states.append(state(self.process.pid))
        if len(self.seen) == self.fails_at:
            raise RuntimeError("it fell")
        self.seen.append(prompts)
        return Answer(self.seconds, self.seconds / 10, [prompt + "!" for prompt in prompts])


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A factory of starters; `.asked` has what was started."""
    monkeypatch.setattr(models, "path", lambda _: tmp_path)
    monkeypatch.setattr(models, "prompts", lambda _, count, tokens, seed: [f"{seed} {n}" for n in range(count)])
    monkeypatch.setattr(processes, "LOGS", tmp_path)

    @dataclass
    class Factory:
        asked: dict[str, Scripted] = field(default_factory=dict)

        def __call__(self, name: str, seconds: float, fails_at: int = -1) -> contest.Starter:
            def start(_: Path, stack: ExitStack) -> Side:
                process = stack.enter_context(processes.started(processes.Program(name, ["sleep", "60"], {})))
                self.asked[name] = Scripted(seconds, process, fails_at)
                return Side(name, process, self.asked[name])

            return start

    return Factory()


def test_ratios_are_theirs_over_ours(scripted):
    starters = {"ours": scripted("ours", 2.0), "theirs": scripted("theirs", 3.0)}
    outcome = contest.contest("m", starters, POINTS, Limits(3, 60))
    assert outcome.failures == {}
    table = report.speed([outcome], ["ours", "theirs"], {"theirs": 1.6})
    assert table[2] == "| m | 128/32 | 1 | 3 | 16 | 11 | **1.50** (1.50 to 1.50) below 1.6 |"
    assert table[3] == "| m | 128/32 | 4 | 3 | 64 | 43 | **1.50** (1.50 to 1.50) below 1.6 |"
    assert "below" not in "".join(report.speed([outcome], ["ours", "theirs"], {"theirs": 1.5}))
    first = report.first_token([outcome], ["ours", "theirs"], 1.0)
    assert first[2] == "| m | 128/32 | 1 | 3 | 200 | 640 | 300 | **1.50** (1.50 to 1.50) |"
    assert report.first_token([outcome], ["ours", "theirs"], 2.0)[2].endswith("**1.50** (1.50 to 1.50) below 2.0 |")


def test_memory_of_a_side_that_holds_less_is_marked(scripted):
    starters = {"ours": scripted("ours", 1.0), "theirs": scripted("theirs", 1.0)}
    outcome = contest.contest("m", starters, POINTS[:1], Limits(1, 60))
    outcome.sides[0].resident_bytes, outcome.sides[1].resident_bytes = 300 << 20, 200 << 20
    assert report.memory([outcome], ["ours", "theirs"])[2] == "| m | 300 | 200 (less than ours) |"


def test_sides_see_the_same_prompts_and_none_twice(scripted):
    contest.contest("m", {"a": scripted("a", 1.0), "b": scripted("b", 1.0)}, POINTS, Limits(2, 60))
    seen = scripted.asked["a"].seen
    assert seen == scripted.asked["b"].seen
    texts = [text for batch in seen[1:] for text in batch]  # the warm-up's batch has its waking prompt once more
    assert len(texts) == len(set(texts)) == 4 + 2 * (2 + 5)


def test_short_batches_are_asked_several_times_in_a_turn(scripted):
    starters = {"a": scripted("a", 0.25), "b": scripted("b", 0.5)}
    outcome = contest.contest("m", starters, POINTS[:1], Limits(2, 60))
    ours, theirs = outcome.sides
    assert [each.seconds for each in ours.answers[POINTS[0]]] == [0.25] * 2
    assert [each.seconds for each in theirs.answers[POINTS[0]]] == [0.5] * 2
    of_ours, of_theirs = scripted.asked["a"].seen, scripted.asked["b"].seen
    # Warm-up, a turn of one batch that shows how short it is, two of four; each with its waking request.
    assert len(of_ours) == 2 + 2 + 2 * 5
    assert of_theirs == of_ours  # so that both have rehearsed the point once
    texts = [text for batch in of_ours[1:] for text in batch]
    assert len(texts) == len(set(texts))


def test_a_waking_request_counts_neither_in_time_nor_in_texts(scripted):
    class Waking(Scripted):
        def ask(self, prompts: list[str], new_tokens: int) -> Answer:
            answer = super().ask(prompts, new_tokens)
            return Answer(100.0, 100.0, []) if new_tokens == contest.WAKING_TOKENS else answer

    def waking(folder: Path, stack: ExitStack) -> Side:
        side = scripted("a", 2.0)(folder, stack)
        side.asked = Waking(2.0, side.process)
        return side

    outcome = contest.contest("m", {"a": waking}, POINTS[:1], Limits(2, 60))
    assert [each.seconds for each in outcome.sides[0].answers[POINTS[0]]] == [2.0, 2.0]


def test_one_stream_is_held_against_bandwidth_and_several_against_products(scripted):
    assert [point.streams == 1 for point in POINTS].count(True) == 1
    read, multiplied = iter([1e9, 5e9]), iter([1e12, 2e12] * (len(POINTS) - 1))
    looks = Looks(lambda: next(read), lambda: next(multiplied))
    outcome = contest.contest("m", {"a": scripted("a", 1.0)}, POINTS, Limits(1, 60), looks)
    assert outcome.bandwidth == 3e9
    assert outcome.products == {point: 1.5e12 for point in POINTS if point.streams > 1}
    assert not [*read, *multiplied]


def test_operations_are_those_of_all_weights_and_tokens(tmp_path):
    shape = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"num_hidden_layers": 3, "vocab_size": 100}))
    layer = 8 * (8 + 4 + 4) + 8 * 8 + 3 * 8 * 32  # q, k and v; out; gate, up and down
    assert peers.operations(tmp_path, Point(5, 4, 7)) == 2 * 7 * (3 * layer * (5 + 4 - 1) + 100 * 8 * 4)


def test_each_round_begins_with_another_side(scripted):
    order: list[str] = []

    class Noting(Scripted):
        def ask(self, prompts: list[str], new_tokens: int) -> Answer:
            if new_tokens == POINTS[0].new_tokens:
                order.append(names[self.process.pid])
            return super().ask(prompts, new_tokens)

    names: dict[int, str] = {}

    def noting(name: str) -> contest.Starter:
        def start(folder: Path, stack: ExitStack) -> Side:
            side = scripted(name, 1.0)(folder, stack)
            names[side.process.pid] = name
            side.asked = Noting(1.0, side.process)
            return side

        return start

    contest.contest("m", {"a": noting("a"), "b": noting("b")}, POINTS[:1], Limits(3, 60))
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_who_is_not_measured_is_stopped(scripted):
    observed: list[tuple[str, bool]] = []

    class Watching(Scripted):
        def ask(self, prompts: list[str], new_tokens: int) -> Answer:
            observed.append((settled(scripted.asked["a"].process.pid), state(self.process.pid) != "T"))
            return super().ask(prompts, new_tokens)

    def watching(folder: Path, stack: ExitStack) -> Side:
        side = scripted("b", 1.0)(folder, stack)
        side.asked = Watching(1.0, side.process)
        return side

    contest.contest("m", {"a": scripted("a", 1.0), "b": watching}, POINTS, Limits(1, 60))
    assert observed == [("T", True)] * 6


def settled(pid: int) -> str:
    """The state once a signal sent before has arrived."""
    for _ in range(100):
        if state(pid) == "T":
            break
        time.sleep(0.01)
    return state(pid)


def test_a_peer_that_does_not_start_is_named_and_the_others_go_on(scripted):
    def broken(_: Path, stack: ExitStack) -> Side:
        program = processes.Program("broken", ["sh", "-c", "echo no such model >&2; exit 3"], {})
        process = stack.enter_context(processes.started(program))
        processes.wait_healthy(processes.free_port(), process, 30)
        raise AssertionError("it became healthy")

    starters = {"ours": scripted("ours", 1.0), "broken": broken, "c": scripted("c", 1.0)}
    outcome = contest.contest("m", starters, POINTS, Limits(1, 60))
    assert [side.name for side in outcome.sides] == ["ours", "c"]
    assert "ended with 3" in outcome.failures["broken"]
    assert "no such model" in outcome.failures["broken"]
    assert report.speed([outcome], ["ours", "broken", "c"], {})[2].split(" | ")[5:7] == ["–", "–"]


def test_what_fails_in_its_warm_up_is_ended_at_once(scripted):
    starters = {"ours": scripted("ours", 1.0), "broken": scripted("broken", 1.0, fails_at=0), "c": scripted("c", 1.0)}
    original = starters["c"]

    def after_broken(folder: Path, stack: ExitStack) -> Side:
        assert scripted.asked["broken"].process.poll() is not None
        return original(folder, stack)

    outcome = contest.contest("m", starters | {"c": after_broken}, POINTS, Limits(1, 60))
    assert list(outcome.failures) == ["broken"]
    assert scripted.asked["c"].process.poll() is not None


def test_a_peer_that_fails_later_keeps_what_it_did(scripted):
    starters = {"ours": scripted("ours", 1.0), "theirs": scripted("theirs", 1.0, fails_at=4)}
    outcome = contest.contest("m", starters, POINTS, Limits(1, 60))
    assert "it fell" in outcome.failures["theirs"]
    rows = report.speed([outcome], ["ours", "theirs"], {})
    assert "**1.00**" in rows[2]
    assert "–" in rows[3]


def test_our_own_failure_ends_it(scripted):
    with pytest.raises(RuntimeError, match="it fell"):
        contest.contest("m", {"ours": scripted("ours", 1.0, fails_at=2)}, POINTS, Limits(1, 60))
    assert scripted.asked["ours"].process.poll() is not None


def test_no_round_begins_that_would_pass_the_limit(scripted, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(contest.time, "monotonic", lambda: clock[0])

    class Slow(Scripted):
        def ask(self, prompts: list[str], new_tokens: int) -> Answer:
            clock[0] += 10.0 if new_tokens == POINTS[0].new_tokens else 0.0
            return super().ask(prompts, new_tokens)

    def slow(folder: Path, stack: ExitStack) -> Side:
        side = scripted("slow", 1.0)(folder, stack)
        side.asked = Slow(1.0, side.process)
        return side

    outcome = contest.contest("m", {"slow": slow}, POINTS[:1], Limits(5, 25.0))
    assert len(outcome.sides[0].answers[POINTS[0]]) == 2


def test_common_share():
    process = subprocess.Popen(["true"], text=True)
    process.wait()
    ours, theirs = (Side(name, process, Scripted(1, process)) for name in "ab")
    ours.opening, theirs.opening = ["abcd", "efgh"], ["abXd", "efgh!"]
    assert report.common_share(ours, theirs) == 6 / 8
