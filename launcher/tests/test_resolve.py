"""`resolve`: the original's rules as tables, and what reaches the children."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from millrace_launcher.errors import LauncherError, Variant
from millrace_launcher.flag import Status
from millrace_launcher.flags import FLAG_TABLE, Arguments
from millrace_launcher.hardware import Machine, look_at_machine, visible_devices
from millrace_launcher.notices import foreign_notices
from millrace_launcher.parser import parse
from millrace_launcher.resolve import LaunchPlan, Programs, Settled, count_shards, launch_plan, settle

CPU = Machine()
PROGRAMS = Programs(worker=("python", "-m", "millrace_worker"), router=("millrace-router",))


def arguments_of(line: str, **environment: str) -> Arguments:
    arguments = parse(line.split(), environment)
    assert isinstance(arguments, Arguments)
    return arguments


def settled(line: str, environment: dict[str, str] | None = None, machine: Machine = CPU) -> Settled:
    environment = environment or {}
    return settle(arguments_of(line, **environment), machine, environment)


def plan_of(line: str, environment: dict[str, str] | None = None, machine: Machine = CPU) -> LaunchPlan:
    environment = environment or {}
    return launch_plan(settled(line, environment, machine), PROGRAMS, Path("/m"), "/s/worker", environment)


# The flags, how many devices the environment names and how many there are: the number of shards, or the error.
SHARDS = [
    ("", None, 0, 1),
    ("", None, 8, 1),
    ("", 4, 8, 4),
    ("", 0, 8, 1),
    ("", 3, 0, 3),
    ("--num-shard 2", None, 0, 2),
    ("--num-shard 2", 4, 4, 2),
    ("--num-shard 0", None, 0, "ArgumentValidation 1"),
    ("--num-shard 4", 2, 8, "NotEnoughCUDADevices 1"),
    ("--num-shard 4", None, 2, "NotEnoughCUDADevices 1"),
    ("--num-shard 4", 0, 2, 4),
    ("--sharded true", None, 0, "NotEnoughCUDADevices 101"),
    ("--sharded true", None, 4, 4),
    ("--sharded true", 2, 8, 2),
    ("--sharded true", 1, 8, "NotEnoughCUDADevices 1"),
    ("--sharded true", 0, 8, "NotEnoughCUDADevices 1"),
    ("--sharded true --num-shard 1", 4, 4, "ArgumentValidation 1"),
    ("--sharded true --num-shard 0", 4, 4, "ArgumentValidation 1"),
    ("--sharded true --num-shard 2", 4, 4, 2),
    ("--sharded true --num-shard 2", None, 0, 2),
    ("--sharded false", 4, 4, 1),
    ("--sharded false --num-shard 2", 4, 4, 2),
]


@pytest.mark.parametrize(("line", "visible", "present", "expected"), SHARDS)
def test_number_of_shards(line: str, visible: int | None, present: int, expected: int | str) -> None:
    try:
        found: int | str = count_shards(arguments_of(line), Machine(visible, present))
    except LauncherError as error:
        found = f"{error.variant.value} {error.exit_code}"
    assert found == expected


@pytest.mark.parametrize(
    ("environment", "present", "expected"),
    [
        ({}, 8, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 8, 3),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, 8, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 8, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 8, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,2"}, 8, 1),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 8, 0),
        ({"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "all"}, 8, 1),
        ({"NVIDIA_VISIBLE_DEVICES": "0,1"}, 8, 2),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, 8, 8),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, 8, 8),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, 0, None),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, 8, 0),
        ({"NVIDIA_VISIBLE_DEVICES": ""}, 8, None),
    ],
)
def test_visible_devices(environment: dict[str, str], present: int, expected: int | None) -> None:
    assert visible_devices(environment, present) == expected


def test_a_machine_is_read_from_its_driver(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    machine = look_at_machine({}, card_names=lambda: ["NVIDIA H200", "NVIDIA H200"], gpus=tmp_path)
    assert machine == Machine(visible=None, present=2, card="NVIDIA H200")
    silent_tool = look_at_machine({"NVIDIA_VISIBLE_DEVICES": "all"}, card_names=list, gpus=tmp_path)
    assert silent_tool == Machine(visible=2, present=2, card=None)


def test_without_a_driver_the_tool_is_not_asked(tmp_path: Path) -> None:
    def unexpected() -> list[str]:
        raise AssertionError("nvidia-smi was asked")

    assert look_at_machine({}, card_names=unexpected, gpus=tmp_path / "absent") == Machine()


# Command lines that contradict themselves: each message names the flags.
CONTRADICTIONS = [
    ("--max-input-tokens 100 --max-total-tokens 100", "--max-input-tokens", "--max-total-tokens"),
    ("--max-input-tokens 100 --max-input-length 90", "--max-input-tokens", "--max-input-length"),
    ("--max-input-length 100 --max-total-tokens 100", "--max-input-tokens", "--max-total-tokens"),
    ("--max-total-tokens 2000 --max-batch-total-tokens 500", "--max-total-tokens", "--max-batch-total-tokens"),
    (
        "--max-batch-prefill-tokens 600 --max-batch-total-tokens 500",
        "--max-batch-prefill-tokens",
        "--max-batch-total-tokens",
    ),
    ("--validation-workers 0", "--validation-workers", "at least 1"),
    ("--max-batch-size 0", "--max-batch-size", "at least 1"),
    ("--max-total-tokens 0", "--max-total-tokens", "at least 1"),
    ("--max-batch-total-tokens 0", "--max-batch-total-tokens", "at least 1"),
    ("--max-batch-prefill-tokens 0", "--max-batch-prefill-tokens", "at least 1"),
    ("--kv-cache-memory 0", "--kv-cache-memory", "at least 1"),
    ("--cuda-memory-fraction 1.1", "--cuda-memory-fraction", "1.1"),
    ("--cuda-memory-fraction 0", "--cuda-memory-fraction", "0.0"),
    ("--watermark-gamma 1", "--watermark-gamma", "1.0"),
    ("--waiting-served-ratio=-1", "--waiting-served-ratio", "negative"),
]


@pytest.mark.parametrize(("line", "first", "second"), CONTRADICTIONS)
def test_contradictions_are_refused(line: str, first: str, second: str) -> None:
    with pytest.raises(LauncherError) as caught:
        settled(line)
    assert caught.value.variant is Variant.ARGUMENT_VALIDATION
    assert caught.value.exit_code == 1
    assert first in caught.value.message
    assert second in caught.value.message


REFUSED = [
    "--speculate 2",
    "--kv-cache-dtype fp8_e5m2",
    "--lora-adapters a@b@c",
    "--cuda-graphs 1,2",
    "--ngrok",
    "--otlp-endpoint http://collector",
]


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_not_served_is_refused_by_name(line: str) -> None:
    with pytest.raises(LauncherError, match=re.escape(line.partition(" ")[0])) as caught:
        settled(line)
    assert caught.value.variant is Variant.ARGUMENT_VALIDATION


def test_every_refused_flag_is_in_the_table_above() -> None:
    refused = {row.long for row in FLAG_TABLE if row.flag.status is Status.REFUSED}
    assert refused == {line.split()[0] for line in REFUSED}


def test_only_8_bits_are_quantized_at_load() -> None:
    (row,) = (row for row in FLAG_TABLE if row.name == "quantize")
    for name in row.flag.kind.choices:
        if name in ("eetq", "bitsandbytes", "gptq", "awq"):
            assert settled(f"--quantize {name}").arguments.quantize == name
            continue
        with pytest.raises(
            LauncherError, match=f"`--quantize {name}` .* a quantized checkpoint says so itself"
        ) as caught:
            settled(f"--quantize {name}")
        assert caught.value.variant is Variant.ARGUMENT_VALIDATION


@pytest.mark.parametrize(
    ("variable", "text"),
    [("QUANTIZE", "exl2"), ("LORA_ADAPTERS", "a"), ("SPECULATE", "1")],
)
def test_what_is_not_served_is_refused_from_the_environment_too(variable: str, text: str) -> None:
    with pytest.raises(LauncherError, match=variable):
        settled("", {variable: text})


@pytest.mark.parametrize(
    "line",
    [
        "--speculate 0",
        "--cuda-graphs 0",
        "--usage-stats off",
        "--prometheus-port 9001",
        "--disable-custom-kernels",
        "--ngrok-authtoken x",
        "--otlp-service-name x",
    ],
)
def test_what_asks_for_nothing_is_accepted(line: str) -> None:
    settled(line)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", 512),
        ("--max-batch-prefill-tokens 100", 100),
        ("--max-batch-total-tokens 500", 500),
        ("--max-batch-total-tokens 9000", 512),
        ("--max-batch-total-tokens 500 --max-batch-prefill-tokens 100", 100),
    ],
)
def test_tokens_of_a_step(line: str, expected: int) -> None:
    assert settled(line).arguments.max_batch_prefill_tokens == expected
    on_gpus = settled(line, machine=Machine(None, 1, "NVIDIA H200")).arguments.max_batch_prefill_tokens
    assert on_gpus == {"": 4096, "--max-batch-total-tokens 9000": 4096}.get(line, expected)


@pytest.mark.parametrize(
    ("hostname", "listens", "health", "url"),
    [
        ("0.0.0.0", "0.0.0.0", "127.0.0.1", "http://0.0.0.0:3000"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", "http://127.0.0.1:3000"),
        ("localhost", "127.0.0.1", "127.0.0.1", "http://127.0.0.1:3000"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.3", "http://10.1.2.3:3000"),
        ("::", "::", "::1", "http://[::]:3000"),
        ("[::1]", "::1", "::1", "http://[::1]:3000"),
        ("3f2a9c1b0d4e", "0.0.0.0", "127.0.0.1", "http://0.0.0.0:3000"),
    ],
)
def test_hostname(hostname: str, listens: str, health: str, url: str) -> None:
    plan = plan_of("", {"HOSTNAME": hostname})
    assert f"--hostname={listens}" in plan.router.argv
    assert (plan.health_host, plan.url) == (health, url)
    assert bool(settled("", {"HOSTNAME": hostname}).notices) == (hostname == "3f2a9c1b0d4e")


@pytest.mark.parametrize(
    ("machine", "environment", "expected"),
    [
        (Machine(), {}, None),
        (Machine(), {"COMPUTE_TYPE": "cpu"}, "cpu"),
        (Machine(None, 1, "NVIDIA H200"), {}, "1-nvidia-h200"),
        (Machine(2, 8, "NVIDIA L40S"), {}, "2-nvidia-l40s"),
        (Machine(0, 8, "NVIDIA L40S"), {}, None),
        (Machine(None, 1, "NVIDIA H200"), {"COMPUTE_TYPE": "mine"}, "mine"),
    ],
)
def test_compute_type(machine: Machine, environment: dict[str, str], expected: str | None) -> None:
    assert plan_of("", environment, machine).router.environment.get("COMPUTE_TYPE") == expected


def test_vertex_names_the_port() -> None:
    plan = plan_of("--port 80", {"AIP_HTTP_PORT": "8080", "AIP_HEALTH_ROUTE": "/alive", "KSERVE": "true"})
    assert plan.port == 8080
    assert "--port=8080" in plan.router.argv
    assert plan.router.environment["AIP_HEALTH_ROUTE"] == "/alive"
    assert plan.router.environment["KSERVE"] == "true"
    for wrong in ("x", "0", "65536", "-1"):
        with pytest.raises(LauncherError, match="AIP_HTTP_PORT"):
            plan_of("", {"AIP_HTTP_PORT": wrong})


def test_the_router_gets_every_flag_of_its_own() -> None:
    plan = plan_of(
        "--model-id org/name --revision main --num-shard 2 --port 8080 --max-input-length 10 --max-total-tokens 20 "
        "--max-batch-size 3 --json-output --served-model-name a --served-model-name b --prefix-caching false "
        "--cors-allow-origin http://a --disable-grammar-support --waiting-served-ratio 1.2"
    )
    words = (
        "--model-id=org/name --model-path=/m --worker-uds-path=/s/worker --num-shard=2 --revision=main "
        "--served-model-name=a --served-model-name=b --max-input-tokens=10 --max-total-tokens=20 --max-best-of=2 "
        "--max-stop-sequences=4 --max-top-n-tokens=5 --max-client-batch-size=4 --payload-limit=2000000 "
        "--disable-grammar-support --max-concurrent-requests=128 --max-batch-prefill-tokens=512 --max-batch-size=3 "
        "--waiting-served-ratio=1.2 --max-waiting-tokens=20 --prefix-caching=false --validation-workers=2 "
        "--hostname=0.0.0.0 --port=8080 --cors-allow-origin=http://a --json-output --hung-step-seconds=30 "
        "--head-timeout-seconds=60 --max-connections=4096 --lame-duck-seconds=0 --graceful-termination-timeout=90 "
        "--reasoning-parser=auto --tool-call-parser=auto"
    )
    assert sorted(plan.router.argv[1:]) == sorted(words.split())


def test_a_worker_gets_its_flags_and_its_place_in_the_group() -> None:
    plan = plan_of(
        "--num-shard 2 --dtype float32 --quantize eetq --trust-remote-code --kv-cache-memory 1000 "
        "--watermark-delta=-1 --json-output"
    )
    command = plan.worker(rank=1, generation=3, master_port=4321)
    assert command.argv == (
        *PROGRAMS.worker,
        "--model-path=/m",
        "--uds-path=/s/worker",
        "--dtype=float32",
        "--quantize=eetq",
        "--trust-remote-code",
        "--model-impl=auto",
        "--cuda-memory-fraction=1.0",
        "--kv-cache-memory=1000",
        "--watermark-gamma=0.5",
        "--watermark-delta=-1.0",
        "--json-output",
    )
    assert command.environment == {
        "MILLRACE_GENERATION": "3",
        "MILLRACE_LIFELINE": "stdin",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "4321",
    }


def test_a_single_rank_needs_no_meeting_point() -> None:
    assert set(plan_of("").worker(0, 1, None).environment) == {
        "MILLRACE_GENERATION",
        "MILLRACE_LIFELINE",
        "RANK",
        "WORLD_SIZE",
    }


def test_secrets_reach_only_the_router_and_only_by_its_environment() -> None:
    secrets = {"HF_TOKEN": "hf_s3cret", "HUGGING_FACE_HUB_TOKEN": "hf_s3cret", "NGROK_AUTHTOKEN": "s3cret"}
    for line, environment in (("--api-key s3cret", secrets), ("", secrets | {"API_KEY": "s3cret"})):
        plan = plan_of(line, environment)
        assert plan.router.environment["API_KEY"] == "s3cret"
        rest = {name: value for name, value in plan.router.environment.items() if name != "API_KEY"}
        everything = repr(
            (plan.router, plan.router.argv, rest, plan.worker(0, 1, 1).argv, plan.worker(0, 1, 1).environment)
        )
        assert "s3cret" not in everything


def test_children_are_configured_by_their_words_and_not_by_inherited_variables() -> None:
    plan = plan_of("--port 80", {"PORT": "abc", "MAX_TOTAL_TOKENS": "99", "LOG_LEVEL": "debug", "PATH": "/bin"})
    assert plan.router.environment == {"LOG_LEVEL": "debug", "PATH": "/bin", "MILLRACE_LIFELINE": "stdin"}
    assert "--max-total-tokens=99" in plan.router.argv


def test_foreign_variables_are_named_once_and_wrong_values_refused() -> None:
    assert foreign_notices({"PATH": "/bin", "PREFILL_CHUNKING": "1", "ATTENTION": ""}) == []
    (notice,) = foreign_notices({"ATTENTION": "paged"})
    assert "ATTENTION" in notice
    with pytest.raises(LauncherError, match="flashinfer"):
        foreign_notices({"ATTENTION": "foo"})
