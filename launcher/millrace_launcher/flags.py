"""Every flag of the launcher, as data: the fields of `Arguments` are the table.

From this one table come the parser (`parser.py`), `--help`, the command lines of router and workers (`resolve.py`) and
`docs/flags.md` (`flags_doc.py`). Names, environment variables and defaults are those of Text Generation Inference.
A field's flag is its name with dashes, its environment variable its name in upper case.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from millrace_launcher import values as v
from millrace_launcher.flag import Flag, Group, NamedFlag, Status, Target, row

_ROUTER = (Target.ROUTER,)
_WORKER = (Target.WORKER,)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the user asked for, parsed but not yet resolved. None: not given."""

    model_id: str = row(
        "bigscience/bloom-560m",
        Flag(Group.MODEL, v.TEXT, "A name on the Hugging Face hub, a local folder, or `demo` for the shipped model."),
    )
    revision: str | None = row(None, Flag(Group.MODEL, v.TEXT, "Branch, tag or commit on the hub.", targets=_ROUTER))
    served_model_name: tuple[str, ...] = row(
        (),
        Flag(Group.MODEL, v.TEXTS, "A further name of the model under /v1; may be given again.", targets=_ROUTER),
    )
    dtype: str | None = row(
        None,
        Flag(
            Group.MODEL,
            v.one_of("float32", "bfloat16", "float16"),
            "Number format of weights and activations.",
            default_text="the checkpoint's on a GPU; on a CPU the fastest that it computes in hardware",
            targets=_WORKER,
        ),
    )
    tokenizer_config_path: str | None = row(
        None,
        Flag(
            Group.MODEL,
            v.PATH,
            "File with the chat template, instead of the model's tokenizer_config.json.",
            targets=_ROUTER,
        ),
    )
    huggingface_hub_cache: str | None = row(
        None,
        Flag(Group.MODEL, v.PATH, "Folder where hub downloads are kept.", default_text="as huggingface_hub chooses"),
    )
    weights_cache_override: str | None = row(
        None, Flag(Group.MODEL, v.PATH, "Folder whose *.safetensors are loaded instead of the model's own.")
    )
    quantize: str | None = row(
        None,
        Flag(
            Group.MODEL,
            v.one_of(
                *("awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin"),
                *("bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "fp8"),
            ),
            "Quantization of the weights.",
            status=Status.REFUSED,
            note="quantized weights are not served yet; serve the unquantized checkpoint",
        ),
    )
    kv_cache_dtype: str | None = row(
        None,
        Flag(
            Group.MODEL,
            v.one_of("fp8_e4m3fn", "fp8_e5m2"),
            "Number format of the KV cache.",
            default_text="that of the activations",
            status=Status.REFUSED,
            note="the KV cache has the number format of the activations; leave the flag out",
        ),
    )
    speculate: int | None = row(
        None,
        Flag(
            Group.MODEL,
            v.COUNT,
            "Tokens to speculate per step.",
            default_text="none",
            status=Status.REFUSED,
            note="speculative decoding is not served yet; leave the flag out or give 0",
            harmless=(0,),
        ),
    )
    trust_remote_code: bool = row(
        False,
        Flag(
            Group.MODEL,
            v.SWITCH,
            "Allow code from the hub to run.",
            status=Status.REFUSED,
            note="code that comes with a model is never run; models of known architectures do not need it",
        ),
    )
    lora_adapters: str | None = row(
        None,
        Flag(
            Group.MODEL,
            v.TEXT,
            "LoRA adapters to load at start.",
            status=Status.REFUSED,
            note="adapters are not served yet; merge the adapter into the checkpoint",
        ),
    )
    rope_scaling: str | None = row(
        None,
        Flag(
            Group.MODEL,
            v.one_of("linear", "dynamic"),
            "Scale the rotary embedding for longer inputs.",
            status=Status.REFUSED,
            note="positions are computed as the model's config.json says; set rope_scaling there",
        ),
    )
    rope_factor: float | None = row(
        None,
        Flag(
            Group.MODEL,
            v.NUMBER,
            "Factor of --rope-scaling.",
            status=Status.REFUSED,
            note="positions are computed as the model's config.json says; set rope_scaling there",
        ),
    )
    sharded: bool | None = row(
        None, Flag(Group.WORKERS, v.TRUE_OR_FALSE, "Force or forbid sharding over all devices that are visible.")
    )
    num_shard: int | None = row(
        None,
        Flag(
            Group.WORKERS,
            v.COUNT,
            "Number of worker processes that share the model (tensor parallelism).",
            default_text="the number of visible devices, else 1",
        ),
    )
    cuda_memory_fraction: float = row(
        1.0, Flag(Group.WORKERS, v.NUMBER, "Share of the GPU's memory to use, above 0 and at most 1.", targets=_WORKER)
    )
    kv_cache_memory: int | None = row(
        None,
        Flag(
            Group.WORKERS,
            v.BYTES,
            "Size of the KV cache of each shard in bytes.",
            default_text="worked out from the memory that is left",
            targets=_WORKER,
        ),
    )
    cuda_graphs: tuple[int, ...] | None = row(
        None,
        Flag(
            Group.WORKERS,
            v.COUNTS,
            "Batch sizes to capture as CUDA graphs, as a comma list; 0 for none.",
            default_text="none",
            status=Status.REFUSED,
            note="CUDA graphs are not captured yet; leave the flag out or give 0",
            harmless=((0,),),
        ),
    )
    disable_custom_kernels: bool = row(
        False,
        Flag(
            Group.WORKERS,
            v.SWITCH,
            "Turn off the kernels for Bloom and GPT-NeoX.",
            status=Status.NO_EFFECT,
            note="there are no such kernels to turn off",
        ),
    )
    shard_uds_path: str | None = row(
        None,
        Flag(
            Group.WORKERS,
            v.PATH,
            "Prefix of the workers' unix sockets; rank N listens on PREFIX-N.",
            default_text="in a private folder of this launcher",
        ),
    )
    master_addr: str = row(
        "localhost", Flag(Group.WORKERS, v.TEXT, "Address at which the shards of one group find each other.")
    )
    master_port: int | None = row(
        None,
        Flag(
            Group.WORKERS,
            v.PORT,
            "Port at which the shards of one group find each other.",
            default_text="a free one, a fresh one for every restart",
        ),
    )
    watermark_gamma: float = row(
        0.5, Flag(Group.WORKERS, v.NUMBER, "Watermark: share of green tokens, between 0 and 1.", targets=_WORKER)
    )
    watermark_delta: float = row(
        2.0, Flag(Group.WORKERS, v.NUMBER, "Watermark: what is added to the logits of green tokens.", targets=_WORKER)
    )
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
        False, Flag(Group.REQUESTS, v.SWITCH, "Allow log-probabilities of prompt tokens.", targets=_ROUTER)
    )
    disable_grammar_support: bool = row(False, Flag(Group.REQUESTS, v.SWITCH, "Refuse every grammar.", targets=_ROUTER))
    max_concurrent_requests: int = row(
        128, Flag(Group.BATCHING, v.COUNT_32, "Requests in progress before 429 is answered.", targets=_ROUTER)
    )
    max_batch_prefill_tokens: int | None = row(
        None,
        Flag(
            Group.BATCHING,
            v.COUNT_32,
            "Most tokens computed in one step; longer prompts are cut into chunks.",
            default_text="4096, or --max-batch-total-tokens if that is less",
            targets=_ROUTER,
        ),
    )
    max_batch_total_tokens: int | None = row(
        None,
        Flag(
            Group.BATCHING,
            v.COUNT_32,
            "Most tokens in the KV cache at once.",
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
            "New requests join a running batch when there are this many waiting per running one.",
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
        Flag(Group.OPERATION, v.SECONDS, "How long running requests may take to end after SIGTERM.", short="g"),
    )
    env: bool = row(
        False,
        Flag(Group.OPERATION, v.SWITCH, "Log the runtime environment at start.", short="e", has_environment=False),
    )


# The rows in the order of `Arguments`.
FLAG_TABLE = tuple(NamedFlag(item.name, item.default, item.metadata["flag"]) for item in fields(Arguments))
