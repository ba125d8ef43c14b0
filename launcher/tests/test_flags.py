"""The flag table, its parser, and what both promise: TGI's names, defaults and strictness."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from millrace_launcher.errors import UsageError
from millrace_launcher.flag import Status
from millrace_launcher.flags import FLAG_TABLE, Arguments
from millrace_launcher.flags_doc import document
from millrace_launcher.help_text import help_text
from millrace_launcher.migrating_doc import FLAGS_OF_TGI
from millrace_launcher.parser import Information, parse

# Text Generation Inference's flags: name, environment variable, default as it prints it (None: no default).
ORIGINAL = """
model-id MODEL_ID bigscience/bloom-560m | revision REVISION | validation-workers VALIDATION_WORKERS 2
sharded SHARDED | num-shard NUM_SHARD | quantize QUANTIZE | speculate SPECULATE | dtype DTYPE
kv-cache-dtype KV_CACHE_DTYPE | trust-remote-code TRUST_REMOTE_CODE false
max-concurrent-requests MAX_CONCURRENT_REQUESTS 128 | max-best-of MAX_BEST_OF 2
max-stop-sequences MAX_STOP_SEQUENCES 4 | max-top-n-tokens MAX_TOP_N_TOKENS 5
max-input-tokens MAX_INPUT_TOKENS | max-input-length MAX_INPUT_LENGTH | max-total-tokens MAX_TOTAL_TOKENS
waiting-served-ratio WAITING_SERVED_RATIO 0.3 | max-batch-prefill-tokens MAX_BATCH_PREFILL_TOKENS
max-batch-total-tokens MAX_BATCH_TOTAL_TOKENS | max-waiting-tokens MAX_WAITING_TOKENS 20
max-batch-size MAX_BATCH_SIZE | cuda-graphs CUDA_GRAPHS | hostname HOSTNAME 0.0.0.0 | port PORT 3000
prometheus-port PROMETHEUS_PORT 9000 | shard-uds-path SHARD_UDS_PATH | master-addr MASTER_ADDR localhost
master-port MASTER_PORT | huggingface-hub-cache HUGGINGFACE_HUB_CACHE
weights-cache-override WEIGHTS_CACHE_OVERRIDE | disable-custom-kernels DISABLE_CUSTOM_KERNELS false
cuda-memory-fraction CUDA_MEMORY_FRACTION 1.0 | rope-scaling ROPE_SCALING | rope-factor ROPE_FACTOR
json-output JSON_OUTPUT false | otlp-endpoint OTLP_ENDPOINT
otlp-service-name OTLP_SERVICE_NAME text-generation-inference.router | cors-allow-origin CORS_ALLOW_ORIGIN
api-key API_KEY | watermark-gamma WATERMARK_GAMMA 0.5 | watermark-delta WATERMARK_DELTA 2.0
ngrok NGROK false | ngrok-authtoken NGROK_AUTHTOKEN | ngrok-edge NGROK_EDGE
tokenizer-config-path TOKENIZER_CONFIG_PATH | disable-grammar-support DISABLE_GRAMMAR_SUPPORT false
env - false | max-client-batch-size MAX_CLIENT_BATCH_SIZE 4 | lora-adapters LORA_ADAPTERS
usage-stats USAGE_STATS on | payload-limit PAYLOAD_LIMIT 2000000
enable-prefill-logprobs ENABLE_PREFILL_LOGPROBS false
graceful-termination-timeout GRACEFUL_TERMINATION_TIMEOUT 90
"""


def original_rows() -> dict[str, tuple[str, str | None]]:
    cells = [cell.split() for line in ORIGINAL.strip().splitlines() for cell in line.split("|")]
    return {cell[0]: (cell[1], cell[2] if len(cell) > 2 else None) for cell in cells}


def test_every_flag_of_the_original_is_here_with_its_name_variable_and_default() -> None:
    ours = {row.long.removeprefix("--"): row for row in FLAG_TABLE}
    original = original_rows()
    assert set(original) == FLAGS_OF_TGI <= set(ours)
    for name, (variable, default) in original.items():
        row = ours[name]
        assert (row.environment or "-") == variable
        shown = None if row.default in (None, ()) else str(row.default)
        assert (shown.lower() if isinstance(row.default, bool) and shown else shown) == default


def test_short_flags_are_those_of_the_original() -> None:
    assert {row.flag.short: row.long for row in FLAG_TABLE if row.flag.short} == {
        "p": "--port",
        "g": "--graceful-termination-timeout",
        "e": "--env",
    }


def test_what_is_not_plainly_served_says_why() -> None:
    for row in FLAG_TABLE:
        assert bool(row.flag.note) == (row.flag.status is not Status.SERVED or bool(row.flag.refused)), row.long


def parsed(*argv: str, **environment: str) -> Arguments:
    arguments = parse(argv, environment)
    assert isinstance(arguments, Arguments)
    return arguments


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--port", "80"], "port", 80),
        (["--port=80"], "port", 80),
        (["-p", "80"], "port", 80),
        (["-p80"], "port", 80),
        (["-p=80"], "port", 80),
        (["-ep", "80"], "port", 80),
        (["-ep80"], "env", True),
        (["--port", "+80"], "port", 80),
        (["--watermark-delta=-1.5"], "watermark_delta", -1.5),
        (["--waiting-served-ratio", "1e-1"], "waiting_served_ratio", 0.1),
        (["--waiting-served-ratio", ".5"], "waiting_served_ratio", 0.5),
        (["--sharded", "false"], "sharded", False),
        (["--cuda-graphs", "1,2", "--cuda-graphs", "4"], "cuda_graphs", (1, 2, 4)),
        (["--cors-allow-origin", "a", "--cors-allow-origin", "b"], "cors_allow_origin", ("a", "b")),
        (["--model-id=a=b"], "model_id", "a=b"),
        (["--prefix-caching", "0"], "prefix_caching", False),
        (["--json-output"], "json_output", True),
        (["--revision", "-"], "revision", "-"),
        (["--"], "port", 3000),
    ],
)
def test_command_line_forms(argv: list[str], field: str, value: object) -> None:
    assert getattr(parsed(*argv), field) == value


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("PORT", "80", "port", 80),
        ("TRUST_REMOTE_CODE", "false", "trust_remote_code", False),
        ("JSON_OUTPUT", "true", "json_output", True),
        ("PREFIX_CACHING", "False", "prefix_caching", False),
        ("CORS_ALLOW_ORIGIN", "a,b", "cors_allow_origin", ("a", "b")),
        ("REVISION", "", "revision", None),
        ("QUANTIZE", "gptq", "quantize", "gptq"),
        ("ENV", "true", "env", False),
    ],
)
def test_environment_forms(variable: str, text: str, field: str, value: object) -> None:
    assert getattr(parsed(**{variable: text}), field) == value


def test_the_command_line_wins_and_its_variable_is_not_even_read() -> None:
    assert parsed("--port", "80", PORT="abc").port == 80


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--nope"], "--nope"),
        (["--model"], "--model"),
        (["--max_total_tokens", "5"], "--max-total-tokens"),
        (["gpt2"], "gpt2"),
        (["--", "gpt2"], "gpt2"),
        (["-"], "'-'"),
        (["-x"], "-x"),
        (["--port"], "--port"),
        (["--port", "--env"], "--port"),
        (["--port", "-1"], "--port"),
        (["--port", "abc"], "abc"),
        (["--port", "70000"], "65535"),
        (["--port", " 80"], "--port"),
        (["--port", "8_0"], "--port"),
        (["--port", "0x50"], "--port"),
        (["--port", "٣"], "--port"),
        (["--port", "1", "--port", "1"], "multiple times"),
        (["-p", "1", "--port", "1"], "multiple times"),
        (["--env", "-e"], "multiple times"),
        (["--env=true"], "takes none"),
        (["-e=true"], "takes none"),
        (["--trust-remote-code", "true"], "'true'"),
        (["--sharded", "maybe"], "--sharded"),
        (["--sharded", "True"], "--sharded"),
        (["--dtype", "int4"], "bfloat16"),
        (["--quantize", "foo"], "--quantize"),
        (["--kv-cache-dtype", "x"], "--kv-cache-dtype"),
        (["--rope-scaling", "x"], "--rope-scaling"),
        (["--usage-stats", "maybe"], "--usage-stats"),
        (["--cuda-graphs", "x"], "--cuda-graphs"),
        (["--max-concurrent-requests=-1"], "--max-concurrent-requests"),
        (["--max-batch-total-tokens", "4294967296"], "--max-batch-total-tokens"),
        (["--waiting-served-ratio", "nan"], "--waiting-served-ratio"),
        (["--waiting-served-ratio", "inf"], "--waiting-served-ratio"),
        (["--cuda-memory-fraction", "1_0"], "--cuda-memory-fraction"),
        (["--revision="], "--revision"),
    ],
)
def test_parser_errors_name_the_flag(argv: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)):
        parse(argv, {})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PORT", "abc"),
        ("PORT", ""),
        ("TRUST_REMOTE_CODE", "maybe"),
        ("TRUST_REMOTE_CODE", "1"),
        ("QUANTIZE", "foo"),
        ("API_KEY", ""),
        ("NUM_SHARD", "-1"),
    ],
)
def test_environment_errors_name_the_variable(variable: str, text: str) -> None:
    with pytest.raises(UsageError, match=variable):
        parse([], {variable: text})


def test_words_after_a_request_for_help_are_not_read_but_those_before_are() -> None:
    assert parse(["--help", "--nope"], {"PORT": "abc"}) is Information.HELP
    assert parse(["-eh"], {}) is Information.HELP
    assert parse(["-V"], {}) is Information.VERSION
    with pytest.raises(UsageError):
        parse(["--nope", "--help"], {})


def test_help_names_every_flag_and_variable() -> None:
    text = help_text("millrace-launcher")
    for row in FLAG_TABLE:
        assert re.search(rf"{row.long}( <|\n)", text)
        assert row.environment is None or f"[env: {row.environment}]" in text


def test_the_flags_page_is_what_the_table_generates() -> None:
    page = Path(__file__).parents[2] / "docs" / "flags.md"
    assert page.read_text(encoding="utf-8") == document(), "run: python -m millrace_launcher.flags_doc docs/flags.md"


def test_each_field_of_arguments_is_a_flag() -> None:
    assert [item.name for item in fields(Arguments)] == [row.name for row in FLAG_TABLE]


def test_starting_imports_nothing_heavy() -> None:
    code = "import sys, millrace_launcher.main; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "huggingface_hub", "grpc", "asyncio", "httpx", "numpy"} & set(modules)
