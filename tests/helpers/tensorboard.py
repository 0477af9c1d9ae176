"""Start TensorBoard and ask its server."""

import json
import re
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.processes import kill, launch, wait_until


class Server:
    """`tensorboard --logdir lightning_logs` on a free port of this machine."""

    def __enter__(self) -> "Server":
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", "lightning_logs"]
        command += ["--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
        self.folder = tempfile.TemporaryDirectory()
        # TensorBoard shows the path: not that of this machine
        (Path(self.folder.name) / "lightning_logs").symlink_to(Path("lightning_logs").resolve())
        self.process = launch(command, Path(self.folder.name))
        printed = Path(self.folder.name) / "err"
        address = re.compile(r"http://127\.0\.0\.1:\d+")
        found = wait_until(lambda: address.search(printed.read_text()), "TensorBoard serves", process=self.process)
        assert found
        self.address = found[0]
        return self

    def __exit__(self, *error: object) -> None:
        kill(self.process)
        self.folder.cleanup()

    def get(self, path: str, body: Any = None) -> Any:
        """The answer of a plugin: parsed JSON, or text."""
        request = urllib.request.Request(
            f"{self.address}/data/plugin/{path}",
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
        try:
            return json.loads(content)
        except ValueError:
            return content.decode()

    def wait(self, path: str, is_complete: Callable[[Any], bool]) -> Any:
        """The first answer that is complete: TensorBoard reads the logs in the background."""
        answers: list[Any] = []

        def ask() -> bool:
            answers.append(self.get(path))
            return is_complete(answers[-1])

        wait_until(ask, f"TensorBoard serves all of {path}")
        return answers[-1]
