"""What can be told before torch is imported, which takes seconds: files that are broken, configurations and numbers of
ranks that cannot be."""

from __future__ import annotations

from millrace_worker.config import WorkerConfig
from millrace_worker.models.architectures import describe
from millrace_worker.models.hf_config import ModelConfig, UnsupportedError
from millrace_worker.models.recurrent.spec import Recurrent
from millrace_worker.models.sharding import Rank, check_whole, local_attention
from millrace_worker.models.spec import Attention
from millrace_worker.models.weight_files import find_tensors


def check(config: WorkerConfig) -> None:
    """Raises CheckpointError, ConfigError or ShardingError: what loading would raise later. Says nothing of models
    without a spec, and of what only the tensors tell."""
    find_tensors(config.model_path)
    if config.model_impl == "transformers":
        return
    try:
        spec, _ = describe(ModelConfig.read(config.model_path))
    except UnsupportedError:
        return
    rank = Rank(config.rank, config.world_size)
    if isinstance(spec, Recurrent):
        check_whole(rank)
        return
    for attention in {layer.attention for layer in spec.layers}:
        if isinstance(attention, Attention):
            local_attention(attention, rank)
