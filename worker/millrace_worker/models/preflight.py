"""What can be told before torch is imported, which takes seconds: files that are broken, configurations and numbers of
ranks that cannot be."""

from __future__ import annotations

from millrace_worker.config import WorkerConfig
from millrace_worker.models.architectures import ENCODER_DECODERS, describe, describe_encoder_decoder
from millrace_worker.models.hf_config import ModelConfig, UnsupportedError
from millrace_worker.models.recurrent.spec import Recurrent
from millrace_worker.models.sharding import Rank, check_divides, check_whole
from millrace_worker.models.weight_files import find_tensors


def check(config: WorkerConfig) -> None:
    """Raises CheckpointError, ConfigError or ShardingError: what loading would raise later. Says nothing of models
    without a spec, and of what only the tensors tell."""
    find_tensors(config.model_path)
    if config.model_impl == "transformers":
        return
    stated, rank = ModelConfig.read(config.model_path), Rank(config.rank, config.world_size)
    try:
        if stated.architecture in ENCODER_DECODERS:
            both, _ = describe_encoder_decoder(stated)
            check_divides(both.attention, both.mlp, rank)
            return
        spec, _ = describe(stated)
    except UnsupportedError:
        return
    if isinstance(spec, Recurrent):
        check_whole(rank)
        return
    for attention, mlp in {(layer.attention, layer.mlp) for layer in spec.layers}:
        check_divides(attention, mlp, rank)
