"""The demo's server while many people draw at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import demo_server
from helpers.load import drawings, post_all
from helpers.processes import FULL

REQUESTS, LIMIT_S = (2000, 0.25) if FULL else (100, 60)
"""The real limit needs an idle machine."""


@pytest.mark.slow
def test_drawings_over_20_connections_are_answered_in_time(tmp_path: Path, report: Callable[[str], None]) -> None:
    bodies = drawings(REQUESTS)
    with demo_server(tmp_path) as (process, address):
        port = int(address.rpartition(":")[2])
        post_all(port, bodies[:40], 20)  # the first answers are slower
        seconds = post_all(port, bodies, 20)
        process.terminate()
        assert process.communicate(timeout=60) == ("", "")
    assert max(seconds) < float("inf")
    median, p99 = np.quantile(seconds, [0.5, 0.99])
    report(f"{REQUESTS} drawings over 20 connections: median {1000 * median:.0f} ms, p99 {1000 * p99:.0f} ms")
    assert p99 < LIMIT_S
