"""The real TensorBoard."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any


class Server:
    """A `tensorboard --logdir lightning_logs` on a free port of this machine."""

    def __enter__(self) -> "Server":
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", "lightning_logs", "--port", "0"]
        command += ["--host", "127.0.0.1", "--load_fast", "false"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self.process.stderr
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.address = found[0]
                return self
        raise RuntimeError("tensorboard ended without serving")

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stderr
        self.process.stderr.close()

    def get(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self.address}/data/plugin/{path}",
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        try:
            return json.loads(content)
        except ValueError:
            return content.decode()

    def wait(self, path: str, found: Callable[[Any], bool]) -> Any:
        """The first answer that has what is awaited: TensorBoard reads the logs in the background."""
        for _ in range(60):
            answer = self.get(path)
            if found(answer):
                return answer
            time.sleep(0.5)
        raise AssertionError(f"{path} never had it: {answer}")
