"""What is asked of a model beyond what its checkpoint says. Only the native decoder does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.scaling import Stretch


@dataclass(frozen=True)
class Changes:
    """`stretch`: of its positions, instead of what the configuration says. `quantize`: the name of the form that the
    weights of linear layers are brought into at load. `stored`: the form that they are to have in the checkpoint."""

    stretch: Stretch | None = None
    quantize: str | None = None
    stored: str | None = None

    def check_stored(self, config: ModelConfig) -> None:
        """Raises ConfigError where weights are stored in another form than is asked for."""
        if self.stored is None:
            return
        found = config.get("quantization_config")
        method = found.get("quant_method") if isinstance(found, Mapping) else None
        if method != self.stored:
            says = "none is stated" if method is None else f"`quant_method` is {method}"
            raise ConfigError(
                f"--quantize {self.stored} is for checkpoints whose weights are in this form, and {says} "
                "(`quantization_config` of config.json): leave the flag out"
            )

    def refuse(self, who: str, *, stretch: bool = True) -> None:
        """Raises ConfigError, for `who` computes instead, where something is asked for. `stretch`: or only where
        quantized weights are."""
        if stretch and self.stretch is not None:
            raise ConfigError(
                f"--rope-scaling and --rope-factor need the native decoder, not {who}; set rope_scaling in config.json"
            )
        if self.quantize is not None:
            raise ConfigError(f"--quantize {self.quantize} needs the native decoder, not {who}; leave the flag out")
