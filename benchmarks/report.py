"""Tables of a contest, in Markdown."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.contest import Outcome, Point, Side


@dataclass(frozen=True)
class Ratio:
    """Theirs over ours in seconds, round by round: above 1, ours is faster."""

    pairs: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.pairs)

    def __str__(self) -> str:
        spread = f" ({min(self.pairs):.2f} to {max(self.pairs):.2f})" if len(self.pairs) > 1 else ""
        return f"**{self.median:.2f}**{spread}"


def speed_ratio(ours: Side, theirs: Side, point: Point) -> Ratio:
    pairs = zip(ours.answers[point], theirs.answers[point], strict=True)
    return Ratio([b.seconds / a.seconds for a, b in pairs])


def first_token_ratio(ours: Side, theirs: Side, point: Point) -> Ratio:
    pairs = zip(ours.answers[point], theirs.answers[point], strict=True)
    return Ratio([b.first_token_seconds / a.first_token_seconds for a, b in pairs])


def speed(outcomes: list[Outcome], names: list[str], targets: dict[str, float]) -> list[str]:
    """Generated tokens per second; a ratio below its side's target is marked."""
    head = ["model", "in/out", "streams", "rounds", names[0]]
    rows = [head + [cell for name in names[1:] for cell in (name, "ratio")]]
    for outcome in outcomes:
        ours, *others = in_order(outcome, names)
        assert ours is not None
        for point in outcome.points:
            row = [*place(outcome, ours, point), f"{ours.rate(point):.0f}"]
            for name, side in zip(names[1:], others, strict=True):
                if side is None or point not in side.answers:
                    row += ["–", "–"]
                    continue
                ratio = speed_ratio(ours, side, point)
                missed = f" below {targets[name]}" if ratio.median < targets.get(name, 0.0) else ""
                row += [f"{side.rate(point):.0f}", f"{ratio}{missed}"]
            rows.append(row)
    return table(rows)


def first_token(outcomes: list[Outcome], names: list[str], target: float) -> list[str]:
    """Milliseconds until the median stream's first token; ratios below the target are marked. Of ours also how many
    tokens of prompts it computes in a second until then, where one stream has the machine to itself."""
    head = ["model", "in/out", "streams", "rounds", names[0], "prompt tokens/s"]
    rows = [head + [cell for name in names[1:] for cell in (name, "ratio")]]
    for outcome in outcomes:
        ours, *others = in_order(outcome, names)
        assert ours is not None
        for point in outcome.points:
            seconds = ours.first_token(point)
            speed = f"{point.prompt_tokens / seconds:.0f}" if point.streams == 1 else "–"
            row = [*place(outcome, ours, point), f"{seconds * 1e3:.0f}", speed]
            for side in others:
                if side is None or point not in side.answers:
                    row += ["–", "–"]
                    continue
                ratio = first_token_ratio(ours, side, point)
                missed = f" below {target}" if ratio.median < target else ""
                row += [f"{side.first_token(point) * 1e3:.0f}", f"{ratio}{missed}"]
            rows.append(row)
    return table(rows)


def memory(outcomes: list[Outcome], names: list[str]) -> list[str]:
    """Resident MiB, the most seen after any turn."""
    rows = [["model", *names]]
    for outcome in outcomes:
        ours, *others = in_order(outcome, names)
        assert ours is not None
        cells = [f"{ours.resident_bytes / 2**20:.0f}"]
        for side in others:
            less = " (less than ours)" if side and side.resident_bytes < ours.resident_bytes else ""
            cells.append(f"{side.resident_bytes / 2**20:.0f}{less}" if side else "–")
        rows.append([outcome.model, *cells])
    return table(rows)


def agreement(outcomes: list[Outcome], names: list[str]) -> list[str]:
    """How much of the warm-up's text each side has in common with ours before the first difference, in percent."""
    rows = [["model", *names[1:]]]
    for outcome in outcomes:
        ours, *others = in_order(outcome, names)
        assert ours is not None
        rows.append([outcome.model, *(f"{100 * common_share(ours, side):.0f} %" if side else "–" for side in others)])
    return table(rows)


def common_share(ours: Side, theirs: Side) -> float:
    pairs = list(zip(ours.opening, theirs.opening, strict=True))
    return sum(common_length(*pair) for pair in pairs) / max(1, sum(len(ours) for ours, _ in pairs))


def common_length(left: str, right: str) -> int:
    """Characters before the first difference."""
    different = (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(different, min(len(left), len(right)))


def failures(outcomes: list[Outcome]) -> list[str]:
    return [f"{outcome.model}, {name}: {why}" for outcome in outcomes for name, why in outcome.failures.items()]


def in_order(outcome: Outcome, names: list[str]) -> list[Side | None]:
    by_name = {side.name: side for side in outcome.sides}
    return [by_name.get(name) for name in names]


def place(outcome: Outcome, ours: Side, point: Point) -> list[str]:
    lengths = f"{point.prompt_tokens}/{point.new_tokens}"
    return [outcome.model, lengths, str(point.streams), str(len(ours.answers[point]))]


def table(rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]
