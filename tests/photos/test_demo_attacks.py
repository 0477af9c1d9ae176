"""The demo's server against clients that are slow, wrong, many or large: it ends each connection and serves others."""

import contextlib
import io
import json
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import attacks
from helpers.attacks import PATIENCE_S, connect, exchange, is_read, receive, request, start_demo, stop_demo
from helpers.load import canvas
from helpers.paper import HELD_OUT_STROKES
from helpers.processes import FULL, wait_until
from PIL import Image, ImageDraw

from mnist_lit.photos import demo, server

SEVEN = canvas(HELD_OUT_STROKES[7])

WORKERS = 3
"""Threads that the server starts when the first pictures arrive."""

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with attacks.serving() as running:
        yield running.server_port


@pytest.fixture(autouse=True)
def nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capsys.readouterr() == ("", "")


def huge_photo() -> bytes:
    """A 7 of 50 megapixels that are partly transparent, in a small file."""
    image = Image.new("LA", (8000, 6250), (255, 200))
    ImageDraw.Draw(image).line([(2000, 1000), (5000, 1000), (3000, 5000)], fill=(0, 200), width=500)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def test_clients_that_fall_silent_are_ended_while_others_are_served(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RECEIVE_S", 3)
    parts = [b"", b"POST /drawing HTTP/1.1\r\nHo", request(port, "/drawing", SEVEN)[:-9]]
    silent = [connect(port, part) for part in parts]
    assert is_read(port, SEVEN)
    assert all(receive(connection)[:12] in (b"", b"HTTP/1.0 403") for connection in silent)


def test_a_client_that_sends_byte_by_byte_is_ended(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RECEIVE_S", 3)
    connection = connect(port)
    started = time.monotonic()
    with contextlib.suppress(ConnectionError):
        for byte in request(port, "/drawing", SEVEN):
            connection.sendall(bytes([byte]))
            time.sleep(0.05)  # each byte is in time
    connection.close()
    assert time.monotonic() - started < PATIENCE_S


def test_a_client_that_does_not_close_after_its_answer_is_ended(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.3)
    connection = connect(port, request(port, "/", method="GET"))
    while connection.recv(65536):
        pass

    def is_ended() -> bool:
        try:
            connection.sendall(b"x")
        except ConnectionError:
            return True
        return False

    wait_until(is_ended, "the server ends the connection")
    connection.close()


def test_200_idle_connections_keep_nobody_out_and_threads_are_bounded(port: int) -> None:
    before = threading.active_count()
    idle = [connect(port) for _ in range(200)]
    assert is_read(port, SEVEN)
    assert threading.active_count() - before <= server.MAX_CONNECTIONS + WORKERS
    for connection in idle:
        connection.close()
    wait_until(lambda: threading.active_count() <= before + WORKERS, "the threads end")


@pytest.mark.parametrize(
    ("method", "headers", "length", "code"),
    [
        ("PUT", [], 1, 501),
        ("HEAD", [], 1, 501),
        ("POST", [], -1, 400),
        ("POST", [], demo.MAX_BYTES + 1, 413),
        ("POST", ["Content-Length: 1"], 1, 400),
        ("POST", ["Content-Length: 2"], 1, 400),
        ("POST", ["Content-Length: +1"], -1, 400),
        ("POST", ["Transfer-Encoding: chunked"], -1, 400),
        ("POST", ["Transfer-Encoding: chunked"], 1, 400),
        ("POST", [f"X-{index}: 7" for index in range(120)], 1, 431),
        ("POST", ["X: " + "7" * 70_000], 1, 431),
    ],
)
def test_a_wrong_request_is_refused(port: int, method: str, headers: list[str], length: int, code: int) -> None:
    answer = exchange(port, request(port, "/drawing", b"", *headers, method=method, length=length))
    assert answer.startswith(b"HTTP/1.0 %d " % code), answer[:200]


def test_a_body_that_is_too_large_is_answered_although_the_client_sends_it_first(port: int) -> None:
    body = bytes(demo.MAX_BYTES + 1)
    head, _, answer = exchange(port, request(port, "/photo", body)).partition(b"\r\n\r\n")
    assert b" 413 " in head
    assert json.loads(answer) == {"error": "No answer: the file has more than 64 MB."}


def test_the_first_of_pipelined_requests_is_answered(port: int) -> None:
    answer = exchange(port, 3 * request(port, "/drawing", SEVEN))
    assert answer.count(b"HTTP/1.0 200 OK") == answer.count(b"pixels") == 1


@pytest.mark.parametrize(
    "data", [b"\0" * 70_000, bytes(range(256)), b"GET /\r\n\r\n", b"\r\n\r\n", b"\x16\x03\x01\x02\x00"]
)
def test_nonsense_is_refused(port: int, data: bytes) -> None:
    connection = connect(port, data)
    connection.shutdown(socket.SHUT_WR)
    assert b"200 OK" not in receive(connection)


def test_clients_that_disconnect_before_the_answer_leave_no_trace(port: int) -> None:
    before = threading.active_count()
    pages = [request(port, path, method="GET") for path in ("/", "/demo.js", "/networks")]
    for data in (b"", b"POST", request(port, "/drawing", SEVEN)[:-9], request(port, "/drawing", SEVEN), *pages):
        for end in (attacks.reset, socket.socket.close):
            end(connect(port, data))
    assert is_read(port, SEVEN)
    wait_until(lambda: threading.active_count() <= before + WORKERS, "the threads end")


@pytest.mark.parametrize(("module", "name"), [(demo, "PLACES"), (server, "MAX_PENDING_BYTES")])
def test_too_many_pictures_at_once_are_refused_in_one_line(
    module: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, 0)
    with attacks.serving() as running:
        body = SEVEN + bytes(server.SMALL_BYTES)
        head, _, answer = exchange(running.server_port, request(running.server_port, "/photo", body)).partition(
            b"\r\n\r\n"
        )
    assert b" 503 " in head
    assert json.loads(answer) == demo.BUSY


def test_a_drawing_is_smaller_than_a_photo(port: int) -> None:
    file = io.BytesIO()
    Image.new("1", (2001, 2000)).save(file, "PNG")
    assert b"more than 4 megapixels" in exchange(port, request(port, "/drawing", file.getvalue()))


@needs_linux
@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="takes long")
@pytest.mark.timeout(1800)
def test_many_photos_of_50_megapixels_leave_memory_and_drawings_alone(tmp_path: Path) -> None:
    photo = huge_photo()
    process, port = start_demo(tmp_path)
    connections = [connect(port, request(port, "/photo", photo)) for _ in range(20)]
    assert is_read(port, SEVEN)  # within PATIENCE_S, before most photos
    for connection in connections:
        connection.settimeout(900)
        assert b"probabilities" in receive(connection)
    assert attacks.status(process.pid, "VmHWM") < 2e6
    stop_demo(process, tmp_path, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_at_once_while_connections_are_open(tmp_path: Path, number: signal.Signals) -> None:
    photo = huge_photo()
    process, port = start_demo(tmp_path)
    data = [b"", b"POST", request(port, "/photo", photo)[:-9], *3 * [request(port, "/photo", photo)]]
    connections = [connect(port, each) for each in 5 * data]
    assert is_read(port, SEVEN)
    time.sleep(1)  # in C++ code, most of the time
    stop_demo(process, tmp_path, number)
    for connection in connections:
        connection.close()


@needs_linux
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_requests_neither_stop_nor_fill_the_server(tmp_path: Path, report: Callable[[str], None]) -> None:
    generator = random.Random(0)
    count = 0
    process, port = start_demo(tmp_path)
    with contextlib.ExitStack() as stack:
        deadline = time.monotonic() + (600 if FULL else 10)
        open_ones: list[socket.socket] = []
        while time.monotonic() < deadline:
            open_ones.append(stack.enter_context(connect(port)))
            open_ones[-1].settimeout(0.5)  # the server may read no more
            data = attacks.any_bytes(generator, port, [SEVEN])
            with contextlib.suppress(OSError):
                open_ones[-1].sendall(
                    data[: generator.choice([len(data), len(data), generator.randrange(len(data) + 1)])]
                )
            if len(open_ones) > 80:  # more than the server holds
                generator.choice([attacks.reset, socket.socket.close])(open_ones.pop(generator.randrange(80)))
            count += 1
            if count % 50 == 0:
                assert is_read(port, SEVEN), count
                assert attacks.status(process.pid, "Threads") < server.MAX_CONNECTIONS + 30, count
    assert is_read(port, SEVEN)
    memory = attacks.status(process.pid, "VmHWM")
    report(f"{count} random requests, at most {memory / 1e6:.2f} GB")
    assert memory < 2e6
    stop_demo(process, tmp_path, signal.SIGTERM)
