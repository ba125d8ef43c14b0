"""Latent attention (DeepSeek), and encoders with decoders."""

from __future__ import annotations

from .case import Case

CASES: dict[str, Case] = {}
