"""The flags that say how requests are served: a part of the table in `flags.py`."""

from __future__ import annotations

from dataclasses import dataclass

from millrace_launcher import values as v
from millrace_launcher.flag import Flag, Group, Status, Target, row

_ROUTER = (Target.ROUTER,)

TOOL_CALL_PARSERS = (
    "hermes",
    "qwen3_coder",
    "glm",
    "llama3_json",
    "pythonic",
    "mistral",
    "deepseek",
    "kimi",
    "harmony",
    "command_r",
    "granite",
    "nemotron",
    "json",
)
REASONING_PARSERS = ("think", "deepseek_r1", "mistral", "command_a", "granite", "seed", "harmony")


@dataclass(frozen=True, kw_only=True)
class ServingFlags:
    """Limits of requests and batches, the HTTP server, logs and operation."""

    max_input_tokens: int | None = row(
        None,
        Flag(
            Group.REQUESTS,
            v.COUNT_32,
            "Most tokens of a prompt.",
            default_text="one less than --max-total-tokens",
            targets=_ROUTER,
        ),
    )
    max_input_length: int | None = row(
        None, Flag(Group.REQUESTS, v.COUNT_32, "Old name of --max-input-tokens; give one of the two.")
    )
    max_total_tokens: int | None = row(
        None,
        Flag(
            Group.REQUESTS,
            v.COUNT_32,
            "Most tokens of prompt and output together.",
            default_text="what model, tokenizer and KV cache allow",
            targets=_ROUTER,
        ),
    )
    max_best_of: int = row(2, Flag(Group.REQUESTS, v.COUNT_32, "Highest best_of.", targets=_ROUTER))
    max_stop_sequences: int = row(4, Flag(Group.REQUESTS, v.COUNT_32, "Most stop strings.", targets=_ROUTER))
    max_top_n_tokens: int = row(5, Flag(Group.REQUESTS, v.COUNT_32, "Highest top_n_tokens.", targets=_ROUTER))
    max_client_batch_size: int = row(
        4, Flag(Group.REQUESTS, v.COUNT_32, "Most prompts in one request.", targets=_ROUTER)
    )
    payload_limit: int = row(
        2_000_000, Flag(Group.REQUESTS, v.BYTES, "Largest body of a request in bytes.", targets=_ROUTER)
    )
    enable_prefill_logprobs: bool = row(
        False,
        Flag(
            Group.REQUESTS,
            v.SWITCH,
            "Allow log-probabilities of prompt tokens.",
            status=Status.NO_EFFECT,
            note="they are always allowed; what they need in memory is bounded",
            targets=_ROUTER,
        ),
    )
    tool_call_parser: str = row(
        "auto",
        Flag(
            Group.REQUESTS,
            v.one_of("auto", "none", *TOOL_CALL_PARSERS),
            "How the model writes calls of tools; auto: as its chat template does.",
            targets=_ROUTER,
        ),
    )
    reasoning_parser: str = row(
        "auto",
        Flag(
            Group.REQUESTS,
            v.one_of("auto", "none", *REASONING_PARSERS),
            "How the model writes its thoughts; auto: as its chat template does.",
            targets=_ROUTER,
        ),
    )
    disable_grammar_support: bool = row(False, Flag(Group.REQUESTS, v.SWITCH, "Refuse every grammar.", targets=_ROUTER))
    max_concurrent_requests: int = row(
        128, Flag(Group.BATCHING, v.COUNT_32, "Requests in progress before 429 is answered.", targets=_ROUTER)
    )
    max_queued_tokens: int | None = row(
        None,
        Flag(
            Group.BATCHING,
            v.COUNT,
            "Prompt tokens that may wait to be computed before newcomers get 429.",
            default_text="any number",
            targets=_ROUTER,
        ),
    )
    max_queue_seconds: float | None = row(
        None,
        Flag(
            Group.BATCHING,
            v.NUMBER,
            "How long newcomers may have to wait, by estimate, before they get 429 instead.",
            default_text="any time",
            targets=_ROUTER,
        ),
    )
    refuse_in_stream: bool = row(
        False,
        Flag(
            Group.BATCHING,
            v.SWITCH,
            "Refuse streams for overload as TGI does, with status 200 and an error event, instead of 429.",
            targets=_ROUTER,
        ),
    )
    max_batch_prefill_tokens: int | None = row(
        None,
        Flag(
            Group.BATCHING,
            v.COUNT_32,
            "Most tokens computed in one step; longer prompts are cut into chunks.",
            default_text="4096, without a GPU 512, or --max-batch-total-tokens if that is less",
            targets=_ROUTER,
        ),
    )
    max_batch_total_tokens: int | None = row(
        None,
        Flag(
            Group.BATCHING,
            v.COUNT_32,
            "Most tokens in the KV cache at once; for models without one, of all running requests together.",
            default_text="as many as memory holds",
            targets=_ROUTER,
        ),
    )
    max_batch_size: int | None = row(
        None,
        Flag(Group.BATCHING, v.COUNT_32, "Most sequences computed at once.", default_text="256", targets=_ROUTER),
    )
    waiting_served_ratio: float = row(
        0.3,
        Flag(
            Group.BATCHING,
            v.NUMBER,
            "New requests join a running batch when there are this many waiting per running one; then all of them do.",
            targets=_ROUTER,
        ),
    )
    max_waiting_tokens: int = row(
        20,
        Flag(Group.BATCHING, v.COUNT_32, "Steps after which waiting requests join in any case.", targets=_ROUTER),
    )
    prefix_caching: bool = row(
        True,
        Flag(
            Group.BATCHING,
            v.LENIENT_TRUE_OR_FALSE,
            "Keep computed prompts and outputs, and share what requests have in common.",
            targets=_ROUTER,
        ),
    )
    validation_workers: int = row(
        2, Flag(Group.BATCHING, v.COUNT_32, "Threads that tokenize; at least 1.", targets=_ROUTER)
    )
    hostname: str = row(
        "0.0.0.0",
        Flag(
            Group.HTTP,
            v.TEXT,
            "Address to listen on. What is neither an address nor `localhost` means 0.0.0.0, because containers "
            "set HOSTNAME to their own name.",
            targets=_ROUTER,
        ),
    )
    port: int = row(
        3000, Flag(Group.HTTP, v.PORT, "Port to listen on; 0 takes a free one.", short="p", targets=_ROUTER)
    )
    api_key: str | None = row(
        None, Flag(Group.HTTP, v.SECRET, "Key that requests must carry as `Authorization: Bearer`.", secret=True)
    )
    api_key_file: str | None = row(
        None,
        Flag(
            Group.HTTP,
            v.PATH,
            "TOML file of API keys: the name, weight and limits of each tenant, and its keys or their SHA-256. Read "
            "again when it changes. With --api-key too, that one is the tenant `default`.",
            targets=_ROUTER,
        ),
    )
    cors_allow_origin: tuple[str, ...] = row(
        (),
        Flag(
            Group.HTTP,
            v.TEXTS,
            "Origin that browsers may call from; may be given again.",
            default_text="any",
            targets=_ROUTER,
        ),
    )
    prometheus_port: int = row(
        9000,
        Flag(
            Group.HTTP,
            v.PORT,
            "Second port for metrics.",
            status=Status.NO_EFFECT,
            note="metrics are at /metrics of --port, as they were in the original",
        ),
    )
    ngrok: bool = row(
        False,
        Flag(
            Group.HTTP,
            v.SWITCH,
            "Make the server reachable through ngrok.",
            status=Status.REFUSED,
            note="tunnels are not offered; run the ngrok program beside the server",
        ),
    )
    ngrok_authtoken: str | None = row(
        None,
        Flag(Group.HTTP, v.TEXT, "For --ngrok.", status=Status.NO_EFFECT, note="see --ngrok", secret=True),
    )
    ngrok_edge: str | None = row(
        None, Flag(Group.HTTP, v.TEXT, "For --ngrok.", status=Status.NO_EFFECT, note="see --ngrok")
    )
    json_output: bool = row(
        False,
        Flag(Group.OPERATION, v.SWITCH, "Logs are JSON, one object a line.", targets=(Target.ROUTER, Target.WORKER)),
    )
    otlp_endpoint: str | None = row(
        None,
        Flag(
            Group.OPERATION,
            v.TEXT,
            "OpenTelemetry collector for traces.",
            status=Status.REFUSED,
            note="traces are not exported yet; metrics are at /metrics",
        ),
    )
    otlp_service_name: str = row(
        "text-generation-inference.router",
        Flag(
            Group.OPERATION,
            v.TEXT,
            "Name of this service in traces.",
            status=Status.NO_EFFECT,
            note="see --otlp-endpoint",
        ),
    )
    usage_stats: str = row(
        "on",
        Flag(
            Group.OPERATION,
            v.one_of("on", "off", "no-stack"),
            "Anonymous usage statistics.",
            status=Status.NO_EFFECT,
            note="Millrace never sends any",
        ),
    )
    graceful_termination_timeout: int = row(
        90,
        Flag(
            Group.OPERATION,
            v.SECONDS,
            "How long running requests may take to end after SIGTERM; those that need longer end with an error.",
            short="g",
            targets=_ROUTER,
        ),
    )
    head_timeout_seconds: int = row(
        60,
        Flag(
            Group.HTTP,
            v.SECONDS,
            "A connection is closed when a request's head, or the next request, has not come for so long.",
            targets=_ROUTER,
        ),
    )
    max_connections: int = row(
        4096,
        Flag(
            Group.HTTP,
            v.COUNT,
            "Connections at once, as far as the limit of open files allows; beyond them those that ask for nothing are "
            "closed, the longest idle first.",
            targets=_ROUTER,
        ),
    )
    lame_duck_seconds: int = row(
        0,
        Flag(
            Group.OPERATION,
            v.SECONDS,
            "How long newcomers are still served after SIGTERM, while /health and /readyz are 503 already: for load "
            "balancers that notice late. It comes before the time of --graceful-termination-timeout.",
            targets=_ROUTER,
        ),
    )
    admin_routes: bool = row(
        False,
        Flag(
            Group.OPERATION,
            v.SWITCH,
            "Offer POST /admin/drain, which stops the server as SIGTERM does. Needs --api-key or an admin in "
            "--api-key-file.",
            targets=_ROUTER,
        ),
    )
    hung_step_seconds: int = row(
        30,
        Flag(
            Group.OPERATION,
            v.COUNT_32,
            "A step that takes so long, and ten times what it is expected to take (by the steps before it, by the "
            "trial at the start before any; at most ten minutes, or five times), counts as hung: its rank and the "
            "others are replaced.",
            targets=_ROUTER,
        ),
    )
    max_restart_wait_seconds: int = row(
        4,
        Flag(
            Group.OPERATION,
            v.SECONDS,
            "The longest pause before workers, or a router, that died again are started again; the pauses are 0, 1, 2 "
            "and 4 seconds, as far as this allows.",
        ),
    )
    dump_folder: str | None = row(
        None,
        Flag(
            Group.OPERATION,
            v.PATH,
            "Folder for reports of ranks that hung.",
            default_text="the system's folder for temporary files",
        ),
    )
    env: bool = row(
        False,
        Flag(Group.OPERATION, v.SWITCH, "Log the runtime environment at start.", short="e", has_environment=False),
    )
