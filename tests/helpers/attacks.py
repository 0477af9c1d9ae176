"""Clients that send the demo's server anything but a normal request, and a look at its process."""

import contextlib
import json
import random
import re
import signal
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from helpers.commands import names
from helpers.processes import finish, send_signal, start, wait_until
from mnist_lit.photos.demo import load_networks, start_server
from mnist_lit.photos.server import LocalServer

PATIENCE_S = 60


def start_demo(folder: Path) -> tuple[ForkServerProcess, int]:
    """Start `mnist-lit demo` in a folder, and return its process and its port."""
    process, out = start(folder, ["demo", "--port=0"]), folder / "out"
    wait_until(lambda: out.exists() and out.read_text().endswith("\n"), "the demo starts", 120, process)
    address = re.search(r"http://127\.0\.0\.1:(\d+)", out.read_text())
    assert address
    return process, int(address[1])


def stop_demo(process: ForkServerProcess, folder: Path, number: signal.Signals) -> None:
    """Stop it with a signal; it must exit with the signal's code, and have printed its address alone."""
    send_signal(process, number)
    assert finish(process) == 128 + number
    assert (folder / "err").read_text() == ""
    assert (folder / "out").read_text().count("\n") == 1
    assert names(folder) == ["err", "out"]


@contextlib.contextmanager
def serving() -> Iterator[LocalServer]:
    """Run the demo's server in this process."""
    with start_server(load_networks(), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def request(port: int, path: str, body: bytes = b"", *headers: str, method: str = "POST", length: int = -1) -> bytes:
    """The bytes of a request; `length` is the one that it states, by default that of the body."""
    stated = [f"Content-Length: {len(body) if length < 0 else length}"] if body or length >= 0 else []
    return (
        "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *stated, *headers, "", ""]).encode() + body
    )


def connect(port: int, data: bytes = b"") -> socket.socket:
    """Open a connection and send some bytes."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    with contextlib.suppress(OSError):  # the server may have ended it already
        connection.sendall(data)
    return connection


def receive(connection: socket.socket) -> bytes:
    """All that the server sends until it closes the connection; a TimeoutError if it does not."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    finally:
        connection.close()
    return b"".join(parts)


def exchange(port: int, data: bytes) -> bytes:
    """The server's answer to some bytes."""
    return receive(connect(port, data))


def reset(connection: socket.socket) -> None:
    """Close a connection as a client that crashes does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def is_read(port: int, drawing: bytes) -> bool:
    """Whether a normal request is answered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/drawing", drawing, timeout=PATIENCE_S) as response:
        return [len(each["probabilities"]) for each in json.load(response)["networks"]] == [10, 10, 10]


def any_bytes(generator: random.Random, port: int, bodies: list[bytes]) -> bytes:
    """A request that is wrong in several ways, or by chance in none."""
    choose = generator.choice
    body = choose([b"", generator.randbytes(generator.randrange(3000)), *bodies])
    if body and generator.random() < 0.5:  # a damaged picture
        damaged = bytearray(body)
        for _ in range(generator.randrange(1, 20)):
            damaged[generator.randrange(len(body))] = generator.randrange(256)
        body = bytes(damaged)
    lengths = ["", "0", "-1", "1e3", "7, 7", "64000001", "9" * 30, "٣", str(len(body)), str(len(body) + 1)]
    headers = {
        "Host": [f"127.0.0.1:{port}", f"localhost:{port}", "elsewhere.example", ""],
        "Content-Length": lengths,
        "Transfer-Encoding": ["chunked", "gzip"],
        "Origin": [f"http://127.0.0.1:{port}", "null", "http://elsewhere.example"],
        "Expect": ["100-continue", "7"],
        "Connection": ["keep-alive", "close"],
        generator.randbytes(9).hex() * choose([1, 4000]): ["x" * choose([1, 70_000])],
    }
    weights = [8, 6, 1, 1, 1, 1, 1]
    names = generator.choices(list(headers), weights, k=choose([0, 1, 2, 3, 5, 120]))
    lines = [f"{name}: {choose(headers[name])}" for name in names]
    if generator.random() < 0.5:  # else hardly any picture would be decoded
        lines = [f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    method = choose(["GET", "POST", "POST", "POST", "PUT", "HEAD", "OPTIONS", "get", ""])
    paths = ["/drawing", "/photo", "/", "/demo.js", "/networks", "/../..", "http://127.0.0.1/", "*"]
    path = choose([*paths, "/" + "a" * choose([1, 70_000])])
    version = choose(["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/x", ""])
    data = choose(["\r\n", "\r\n", "\n"]).join([f"{method} {path} {version}", *lines, "", ""]).encode() + body
    if generator.random() < 0.1:
        data = generator.randbytes(generator.randrange(5000))
    return data * choose([1, 1, 1, 1, 3])


def status(pid: int | None, name: str) -> int:
    """A figure of a process on Linux, such as its Threads or VmHWM, its largest memory so far in kB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
