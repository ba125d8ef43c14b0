"""Pickled weights become safetensors in the cache, before any rank starts. The work is a program's of the worker's: it
needs torch, which the launcher never imports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from millrace_launcher.errors import LauncherError, Variant
from millrace_launcher.fetching import Report, Say, unheard
from millrace_launcher.logs import Log, worker_record
from millrace_launcher.model_folder import pickled_files
from millrace_launcher.process import Child, Ending
from millrace_launcher.resolve import Command

# Part of each conversion's name: raised when the program writes something else.
FORMAT = 1


@dataclass(frozen=True)
class Converter:
    """How the program is started, and where its results are kept: beside the models of the hub's cache."""

    program: tuple[str, ...]
    environment: Mapping[str, str]
    cache: Path

    def safetensors_of(self, weights: Path, log: Log, say: Say = unheard) -> Path:
        """A folder with the tensors of the pickled files in `weights`, made now or at an earlier start.

        Raises `DownloadError` with the reason when the files cannot be converted.
        """
        files = pickled_files(weights)
        target = self.cache / "millrace" / f"{weights.resolve().name}-{_fingerprint(files)}"
        if target.is_dir():
            log.info(f"The weights in {weights} are pickled: serving what was converted from them, {target}")
            return target
        log.info(f"The weights in {weights} are pickled: converting them to safetensors, once, into {target}")
        self._run((*self.program, f"--target={target}", *map(str, files)), log, say)
        return target

    def _run(self, argv: tuple[str, ...], log: Log, say: Say) -> None:
        ended: SimpleQueue[Ending] = SimpleQueue()

        def relay(stream: str, line: str) -> None:
            record = worker_record(line, 0, stream)
            log.write(replace(record, span={}))
            if "file" in record.fields and "of" in record.fields:
                say(Report(f"converting file {record.fields['file']} of {record.fields['of']} to safetensors"))

        try:
            child = Child(
                Command(argv, self.environment),
                on_line=relay,
                on_exit=ended.put,
            )
        except OSError as error:
            raise _failed(f"{argv[0]} cannot be started: {error.strerror}") from None
        ending = ended.get()
        if ending.status:
            raise _failed(child.ending_in_words(ending))


def _fingerprint(files: list[Path]) -> str:
    """Another for files that lie elsewhere or have changed: by place, length and time of the last change."""
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([FORMAT, states]).encode()).hexdigest()[:16]


def _failed(reason: str) -> LauncherError:
    return LauncherError(Variant.DOWNLOAD, f"pickled weights cannot be converted to safetensors: {reason}")
