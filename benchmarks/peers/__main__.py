"""Ours against OpenVINO GenAI (in process), vLLM and llama-server (HTTP), alternating in one run on one machine.

`make bench-peers` installs the peers and runs this; `ARGS="--help"` lists the options. Greedy, no end-of-sequence;
every side must generate every token it is asked for. While one side is measured the others are stopped (SIGSTOP).
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from functools import partial
from pathlib import Path

from benchmarks import machine, models, report, serving
from benchmarks.contest import Limits, Looks, Outcome, Point, contest
from benchmarks.peers import sides

POINTS = [Point(128, 128, 1), Point(128, 128, 16), Point(128, 128, 64), Point(1024, 128, 1), Point(1024, 128, 16)]
# A first token of ours comes no later than theirs.
FIRST_TOKEN_TARGET = 1.0
PEERS = ["openvino", "vllm", "llama", "openvino-defaults"]


def main() -> None:
    options = parsed()
    names = ["millrace", *options.peers]
    points = chosen_points(options)
    limits = Limits(options.rounds, options.point_seconds)
    description = machine.describe()
    outcomes: list[Outcome] = []
    try:
        for model in options.models:
            dtype = models.torch_dtype_of(models.path(model))  # of the activations
            looks = Looks(machine.read_bandwidth, partial(machine.product_rate, dtype))
            outcomes.append(contest(model, sides.starters(names, points), points, limits, looks))
            now = outcomes[-1:]
            print(*report.speed(now, names, sides.TARGETS), *report.failures(now), sep="\n", flush=True)
    finally:  # what was measured is kept when a later model's run is ended
        lines = [
            f"# Ours and the peers, {datetime.date.today().isoformat()}\n",
            f'`make bench-peers PEERS="{" ".join(options.peers)}" ARGS="{" ".join(options.given)}"`\n',
            f"Machine: {description}; after {machine.load()}\n",
            *whole_report(outcomes, names),
        ]
        if outcomes:
            serving.keep("peers", lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=models.NAMES, choices=models.NAMES)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16, 64], help="points with these only")
    parser.add_argument("--prompt-tokens", nargs="+", type=int, default=[128, 1024], help="points with these only")
    parser.add_argument("--new-tokens", type=int, default=128, help="of every stream (128)")
    parser.add_argument("--rounds", type=int, default=3, help="at each point, if --point-seconds allows (3)")
    parser.add_argument("--point-seconds", type=float, default=300.0, help="no round begins that would pass it (300)")
    parser.add_argument("--peers", nargs="+", default=PEERS[:3], choices=PEERS)
    options = parser.parse_args()
    options.given = without_peers(sys.argv[1:])
    return options


def without_peers(arguments: list[str]) -> list[str]:
    """The arguments as `ARGS` had them: the peers have their own variable."""
    kept, inside = [], False
    for argument in arguments:
        inside = argument == "--peers" or (inside and not argument.startswith("--"))
        if not inside:
            kept.append(argument)
    return kept


def chosen_points(options: argparse.Namespace) -> list[Point]:
    chosen = [
        Point(point.prompt_tokens, options.new_tokens, point.streams)
        for point in POINTS
        if point.streams in options.streams and point.prompt_tokens in options.prompt_tokens
    ]
    if not chosen:
        listed = ", ".join(f"{p.prompt_tokens} tokens x {p.streams}" for p in POINTS)
        raise SystemExit(f"--streams and --prompt-tokens leave no point; there are: {listed}")
    return chosen


def whole_report(outcomes: list[Outcome], names: list[str]) -> list[str]:
    abouts = [
        f"- {outcome.model}, {side.name}: {side.about}" for outcome in outcomes for side in outcome.sides if side.about
    ]
    return [
        "Generated tokens per second through the whole request; ratio: theirs over ours in seconds, round by round, "
        "median (least to most); above 1, ours is faster. Targets: "
        + ", ".join(f"{name} {target}" for name, target in sides.TARGETS.items() if name in names)
        + ".\n",
        *report.speed(outcomes, names, sides.TARGETS),
        f"\nMilliseconds to the median stream's first token; ratio as above, target {FIRST_TOKEN_TARGET}.\n",
        *report.first_token(outcomes, names, FIRST_TOKEN_TARGET),
        "\nResident memory (VmRSS of the process and all it started), MiB, the most seen after a turn.\n",
        *report.memory(outcomes, names),
        "\nText in common with ours before the first difference, greedy, 16 tokens (random weights: rounding alone "
        "parts bfloat16 sides soon).\n",
        *report.agreement(outcomes, names),
        "\nDecode at one stream against the machine's limit: bytes of weights that a token must read, times tokens "
        "per second after the first (median), over what all cores together read meanwhile (median of the looks before "
        "and after the points of one stream). What a shared machine's memory gives changes within seconds: for a look "
        "between steps there is `make bench-roofline`.\n",
        *roofline(outcomes, names),
        "\nSeveral streams against what the machine multiplies: operations that a batch's products must do (two for "
        "each weight and token; attention's own are not counted), over its seconds (median), over what a product of "
        "2048 x 2048 x 2048 by torch's library reached on all cores before and after the point, in the number format "
        "of the activations (who multiplies in fewer bits may pass it).\n",
        *arithmetic(outcomes, names),
        "\nSides:\n",
        *abouts,
        *(f"- not measured: {failure}" for failure in report.failures(outcomes)),
    ]


def roofline(outcomes: list[Outcome], names: list[str]) -> list[str]:
    rows = [["model", "GB/s", *names]]
    for outcome in outcomes:
        single = next((point for point in outcome.points if point.streams == 1), None)
        if single is None:
            continue
        weights = models.bytes_read_per_token(models.path(outcome.model))
        cells = []
        for side in report.in_order(outcome, names):
            if side is None or single not in side.answers:
                cells.append("–")
                continue
            seconds = statistics.median(a.seconds - a.first_token_seconds for a in side.answers[single])
            cells.append(f"{(single.new_tokens - 1) / seconds * weights / outcome.bandwidth:.0%}")
        rows.append([outcome.model, f"{outcome.bandwidth / 1e9:.1f}", *cells])
    return report.table(rows)


def arithmetic(outcomes: list[Outcome], names: list[str]) -> list[str]:
    rows = [["model", "in/out", "streams", "GFLOP/s", *names]]
    for outcome in outcomes:
        for point in outcome.points:
            if point.streams == 1:
                continue
            done = operations(models.path(outcome.model), point)
            cells = []
            for side in report.in_order(outcome, names):
                if side is None or point not in side.answers:
                    cells.append("–")
                    continue
                seconds = statistics.median(answer.seconds for answer in side.answers[point])
                cells.append(f"{done / seconds / outcome.products[point]:.0%}")
            lengths = f"{point.prompt_tokens}/{point.new_tokens}"
            rows.append([outcome.model, lengths, str(point.streams), f"{outcome.products[point] / 1e9:.0f}", *cells])
    return report.table(rows)


def operations(folder: Path, point: Point) -> float:
    """Of a batch's products. The last token is never an input; the head is for new tokens only."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, heads, kv_heads = (config[f] for f in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    attention = hidden * (2 * heads + 2 * kv_heads) * (hidden // heads)
    layers = config["num_hidden_layers"] * (attention + 3 * hidden * config["intermediate_size"])
    inputs = point.prompt_tokens + point.new_tokens - 1
    return 2.0 * point.streams * (layers * inputs + config["vocab_size"] * hidden * point.new_tokens)


if __name__ == "__main__":
    main()
