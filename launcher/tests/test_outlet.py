"""Lines never wait for whoever reads them."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from millrace_launcher.outlet import Outlet


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """Its reading end, and the writing one as a stream."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        yield reading, stream
    os.close(reading)


def test_lines_are_dropped_while_nobody_reads_and_counted_when_somebody_does(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    outlet = Outlet(stream)
    written = threading.Event()

    def write_too_much() -> None:
        for number in range(5_000):
            outlet.line(f"line {number} " + "x" * 90)
        written.set()

    threading.Thread(target=write_too_much, daemon=True).start()
    assert written.wait(60), "a reader that hangs held up the writer"
    first = os.read(reading, 1 << 20).decode().splitlines()
    outlet.line("read again")
    rest = os.read(reading, 1 << 20).decode().splitlines()
    kept = [line for line in first if line.startswith("line ")]
    assert kept[0] == "line 0 " + "x" * 90
    assert rest[-1] == "read again"
    assert rest[-2] == f"lines dropped, because nobody took them: {5_000 - len(kept)}"


def test_a_long_line_arrives_whole(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    outlet = Outlet(stream)
    long = "ä" * 20_000
    outlet.line(long)
    assert os.read(reading, 1 << 20).decode() == long + "\n"


def test_half_a_line_is_ended_before_the_next(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    outlet = Outlet(stream)
    outlet.line("y" * 200_000)  # more than a pipe takes
    os.read(reading, 1 << 20)
    outlet.line("next")
    rest = os.read(reading, 1 << 20).decode().splitlines()
    assert rest == ["", "lines dropped, because nobody took them: 1", "next"]


def test_a_full_disk_keeps_nothing_and_stops_nothing() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        outlet = Outlet(stream)
        for _ in range(100):
            outlet.line("z" * 1000)
    # Closing would fail if anything had stayed in the stream's own buffer.


def test_a_stream_without_a_descriptor_is_written_to_as_it_is() -> None:
    stream = io.StringIO()
    Outlet(stream).line("hello")
    assert stream.getvalue() == "hello\n"
