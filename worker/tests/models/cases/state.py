"""Recurrent models: a state in the row instead of pages."""

from __future__ import annotations

from .case import Case

CASES: dict[str, Case] = {}
