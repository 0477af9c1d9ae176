"""An HTTP server for this machine only, in which no client can delay the others or use up the memory."""

import contextlib
import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

Answer = TypeVar("Answer")

MAX_CONNECTIONS = 64

RECEIVE_S = 10.0
"""Seconds in which a whole request must arrive."""

LINGER_S = 2.0
"""Seconds in which a client must close the connection after its answer."""

SMALL_BYTES = 1_000_000
"""Size up to which a request body is always accepted."""

MAX_PENDING_BYTES = 128_000_000
"""Size of all request bodies together beyond which larger ones are refused."""


class Workers:
    """Few threads that do costly work, while a limited number of calls wait for them.

    With a new thread for each picture, glibc would reserve memory for each of them.
    """

    def __init__(self, threads: int, places: int) -> None:
        self._pool, self._places = ThreadPoolExecutor(threads), threading.Semaphore(places)
        self.shutdown = self._pool.shutdown

    def call(self, function: Callable[..., Answer], *args: Any) -> Answer | None:
        """Call a function in a worker and return its result; return None at once if too many calls wait already."""
        if not self._places.acquire(blocking=False):
            return None
        try:
            return self._pool.submit(function, *args).result()
        finally:
            self._places.release()


class LocalServer(ThreadingHTTPServer):
    """Answers one request per connection, in at most MAX_CONNECTIONS threads.

    A connection has a deadline while the server waits for its client. When too many connections are open, the one with
    the earliest deadline ends.
    """

    request_queue_size = 128  # with the default of 5, the kernel drops connections, which clients repeat a second later

    def __init__(self, port: int, handler: Any, workers: dict[str, Workers]) -> None:
        self.workers = workers
        self._deadlines: dict[socket.socket, float] = {}  # of all open connections
        self._sizes: dict[socket.socket, int] = {}
        super().__init__(("127.0.0.1", port), handler)
        self.socket.setblocking(False)  # else accepting a client that has gone meanwhile waits for the next one

    def set_deadline(self, connection: socket.socket, seconds: float) -> None:
        """Set the time in which a client must send or close; infinity while it waits for the server."""
        self._deadlines[connection] = time.monotonic() + seconds

    def reserve(self, connection: socket.socket, size: int) -> bool:
        """Reserve memory for a request body of `size` bytes; False if there is not enough."""
        self._sizes[connection] = size
        if size <= SMALL_BYTES or sum(self._sizes.copy().values()) <= MAX_PENDING_BYTES:
            return True
        del self._sizes[connection]
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        while len(self._deadlines) >= MAX_CONNECTIONS:
            self._hang_up(max(time.monotonic(), min(self._deadlines.copy().values(), default=0)))
            time.sleep(0.005)
        self.set_deadline(request, RECEIVE_S)
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """End the connections whose time is over; `serve_forever` calls this twice a second or more often."""
        self._hang_up(time.monotonic())

    def _hang_up(self, latest: float) -> None:
        """End the connections with a deadline up to `latest`: their threads read the end of the stream."""
        for connection, deadline in self._deadlines.copy().items():
            if deadline <= latest and deadline < math.inf:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)

    def server_close(self) -> None:
        super().server_close()
        for workers in self.workers.values():
            workers.shutdown()

    def shutdown_request(self, request: Any) -> None:
        try:
            super().shutdown_request(request)
        finally:
            self._sizes.pop(request, None)
            self._deadlines.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that closes the connection early is no error
            super().handle_error(request, client_address)


class LocalHandler(BaseHTTPRequestHandler):
    """Handles one request, and closes the connection only after the client has read the answer."""

    server: LocalServer
    timeout = RECEIVE_S  # of sending the whole answer

    def finish(self) -> None:
        """Read what the client still sends: closing before would reset the connection and could lose the answer."""
        super().finish()
        self.server.set_deadline(self.connection, LINGER_S)
        self.connection.shutdown(socket.SHUT_WR)
        while self.connection.recv(65536):
            pass

    def log_message(self, *args: Any) -> None:
        """Log nothing: the page sends a request for each stroke."""
