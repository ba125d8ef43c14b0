"""A model's own code, of which transformers runs a copy."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path

LOCK = ".millrace.lock"


def take_code(folder: Path, files: Iterable[str]) -> None:
    """Copies `files` of `folder`, and what they import beside them, to where transformers looks for them.

    It would do so itself, in every rank at once, and one would import what another has half written. Here they take
    turns: whoever comes later finds the same files and writes nothing.
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.init_hf_modules()
    modules = Path(dynamic_module_utils.HF_MODULES_CACHE)  # pyright: ignore[reportPrivateImportUsage]
    with (modules / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in sorted(files):
            dynamic_module_utils.get_cached_module_file(folder, file, local_files_only=True)
