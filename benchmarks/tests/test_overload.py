"""The clients of the overload benchmark against a real socket, and its arithmetic."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks import flood, overload
from benchmarks.flood import Answer

# A token may well say "error".
WHOLE = b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"text":"error","generated_text":"a"}\n\n'
CUT = b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"generated_text":null}\n\n'
REFUSED = b'HTTP/1.1 429 Busy\r\nRetry-After: 3\r\ncontent-type: application/json\r\n\r\n{"error":"x"}'
RUDE = b"HTTP/1.1 429 Busy\r\n\r\n"


@contextmanager
def server(answers: list[bytes]) -> Iterator[int]:
    """Answers in turn, the last one for ever."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for number in range(10**9):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answers[min(number, len(answers) - 1)])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def make() -> flood.Ask:
    return flood.ask("/generate_stream", {"inputs": "a"}, 7)


def test_clients_in_turn_ask_again_also_when_refused():
    with server([REFUSED, WHOLE]) as port:
        answers = flood.in_turn(port, make, 2, 0.5)
    assert answers
    assert all(one.is_whole and one.new_tokens == 7 and one.first <= one.ended for one in answers)


def test_arrivals_wait_for_nobody_and_everything_is_told():
    looks: list[int] = []
    with server([WHOLE, CUT, RUDE, REFUSED]) as port:
        answers = flood.arriving(port, make, 40.0, 1.0, lambda: looks.append(1))
    assert [one.is_whole for one in answers].count(True) == 1
    assert looks
    refused = [one for one in answers if one.status == 429]
    assert [overload.is_polite(one) for one in refused].count(False) == 1
    assert {one.retry_after for one in refused} == {"", "3"}


def test_nobody_there_is_an_answer_too():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    answers = flood.arriving(port, make, 50.0, 0.1, lambda: None)
    assert answers
    assert {one.status for one in answers} == {0}


def answer(sent: float, first: float, ended: float, *, is_whole: bool = True) -> Answer:
    return Answer(200, "", "", is_whole, 100, sent, first, ended)


def test_tokens_are_counted_where_they_fell():
    answers = [answer(0, 0, 10), answer(0, 5, 15), answer(0, 30, 40), answer(0, 0, 10, is_whole=False)]
    assert overload.tokens_per_second(answers, 5, 10) == pytest.approx((50 + 50) / 5)


def test_quantiles_and_growth():
    assert overload.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert overload.quantile([float(n) for n in range(100)], 0.99) == 99.0
    assert overload.quantile([], 0.5) == 0.0
    assert overload.grown([900, 900, 10, 10, 20, 20, 30, 30]) == 20
