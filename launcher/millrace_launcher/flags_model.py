"""The flags that say which model runs, and on what: a part of the table in `flags.py`."""

from __future__ import annotations

from dataclasses import dataclass

from millrace_launcher import values as v
from millrace_launcher.flag import Flag, Group, Status, Target, row

_ROUTER = (Target.ROUTER,)
_WORKER = (Target.WORKER,)
_QUANTIZATIONS = (
    *("awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin"),
    *("bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "fp8"),
)
_SERVED_QUANTIZATIONS = ("eetq", "bitsandbytes", "gptq", "awq")


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which weights, in which number format, on how many shards with how much memory."""

    model_id: str = row(
        "bigscience/bloom-560m",
        Flag(Group.MODEL, v.TEXT, "A name on the Hugging Face hub, a local folder, or `demo` for the shipped model."),
    )
    revision: str | None = row(None, Flag(Group.MODEL, v.TEXT, "Branch, tag or commit on the hub.", targets=_ROUTER))
    served_model_name: tuple[str, ...] = row(
        (),
        Flag(Group.MODEL, v.TEXTS, "A further name of the model under /v1; may be given again.", targets=_ROUTER),
    )
    strict_model_names: bool = row(
        False,
        Flag(
            Group.MODEL,
            v.SWITCH,
            "Answer 404 under /v1 to names of models that are not served; else every name means the one that is.",
            targets=_ROUTER,
        ),
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
            v.one_of(*_QUANTIZATIONS),
            "Quantize the weights of linear layers at load: eetq and bitsandbytes are 8 bits with a scale for each "
            "output, on CPUs. gptq and awq refuse a checkpoint that is not in that form and change nothing in one that "
            "is.",
            refused=tuple(name for name in _QUANTIZATIONS if name not in _SERVED_QUANTIZATIONS),
            note="a quantized checkpoint says so itself; leave the flag out",
            targets=_WORKER,
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
            "Run code that comes with the model, with the rights of this server. Only models that neither Millrace nor "
            "transformers knows need it.",
            targets=_WORKER,
        ),
    )
    model_impl: str = row(
        "auto",
        Flag(
            Group.MODEL,
            v.one_of("auto", "native", "transformers"),
            "Who computes the model: Millrace's own decoder (native), or the model's code in transformers over "
            "Millrace's pages; auto takes the first where it knows the architecture.",
            targets=_WORKER,
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
            "Stretch rotary positions for longer inputs, in place of what config.json says; the longest sequence "
            "grows by the factor.",
            targets=_WORKER,
        ),
    )
    rope_factor: float | None = row(
        None,
        Flag(
            Group.MODEL,
            v.NUMBER,
            "Factor of --rope-scaling, at least 1 (1 if absent); alone it means linear.",
            targets=_WORKER,
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
            "Size of the KV cache of each shard in bytes, or of the rows of models without one.",
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
