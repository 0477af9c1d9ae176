"""The demo's server: the files of its page, its answers and its refusals."""

import io
import json
import shutil
import signal
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.attacks import serving, start_demo, stop_demo
from helpers.load import drawings, post_all
from helpers.paper import seven
from helpers.processes import FULL
from helpers.readme_tables import ROOT

from mnist_lit import UserError
from mnist_lit.command_parser import READERS, REFERENCES
from mnist_lit.files import project_path
from mnist_lit.photos.demo import FILES, load_networks, start_server
from mnist_lit.run.restore import load_classifier

REQUESTS, LIMIT_S = (2000, 0.25) if FULL else (100, 60)
"""The real limit needs an idle machine."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server in this process."""
    with serving() as server:
        yield f"http://127.0.0.1:{server.server_port}"


def post(url: str, body: bytes) -> dict[str, Any]:
    with urllib.request.urlopen(url, body, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as response:
        return json.load(response)


@pytest.mark.parametrize("path", FILES)
def test_the_page_and_its_files_may_request_nothing_from_other_servers(address: str, path: str) -> None:
    with urllib.request.urlopen(address + path, timeout=60) as response:
        assert response.headers["Content-Type"] == f"{FILES[path]}; charset=utf-8"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert b"http" not in response.read()


@pytest.mark.parametrize("path", ["drawing", "photo"])
def test_a_picture_is_answered_with_the_probabilities_and_inputs_of_all_networks(address: str, path: str) -> None:
    file = io.BytesIO()
    seven().save(file, "PNG")
    answer = post(f"{address}/{path}", file.getvalue())
    images = torch.tensor(answer["pixels"], dtype=torch.uint8)[None, None]
    assert images.shape == (1, 1, 28, 28)
    assert len(answer["networks"]) == 3
    for reference, network in zip(READERS, answer["networks"], strict=True):
        model, _ = load_classifier(project_path(reference))
        with torch.inference_mode():
            expected = model(images).softmax(dim=1)[0]
        torch.testing.assert_close(torch.tensor(network["probabilities"]), expected)
        assert expected.argmax() == 7
        shown = torch.tensor(network["input"])
        assert shown.shape == (18, 18)
        torch.testing.assert_close(shown / 255, model.preprocess.prepare(images)[0, 0], atol=0.5 / 255, rtol=0)
    assert "not a picture" in post(f"{address}/{path}", b"7")["error"]


def test_the_page_gets_the_names_and_sizes_of_the_networks(address: str) -> None:
    names = ["DS_CNN_V1", "DS_CNN_V2", "DS_CNN_V3"]
    sizes = [5226, 4070, 6526]
    assert get(f"{address}/networks") == [
        {"name": name, "parameters": size} for name, size in zip(names, sizes, strict=True)
    ]


def test_a_checkpoint_of_ones_own_is_one_more_network_and_the_last(tmp_path: Path) -> None:
    assert [name for name, _ in load_networks(str(project_path(READERS[0])))] == [
        "DS_CNN_V2",
        "DS_CNN_V3",
        "DS_CNN_V1 (yours)",
    ]
    shutil.copy(project_path(READERS[-1]), tmp_path / "own.ckpt")
    assert [name for name, _ in load_networks(str(tmp_path / "own.ckpt"))][2:] == ["DS_CNN_V3", "DS_CNN_V3 (yours)"]


def test_the_wheel_contains_the_networks() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for reference in {*REFERENCES, *READERS}:
        assert build["force-include"][reference] == f"mnist_lit/{reference}"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000"])
def test_the_port_may_be_that_of_http_or_of_a_tunnel(address: str, host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/networks", headers=headers), timeout=60) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("path", "headers", "body", "code"),
    [
        ("", {"Host": "elsewhere.example:80"}, None, 403),
        ("", {"Host": "localhost.example"}, None, 403),
        ("/networks", {"Host": "localhost:8000", "Origin": "http://localhost:3000"}, None, 403),
        ("/../pyproject.toml", {}, None, 404),
        ("/demo.py", {}, None, 404),
        ("/networks", {"Origin": "http://elsewhere.example"}, None, 403),
        ("/photo", {"Origin": "http://elsewhere.example"}, b"7", 403),
        ("/photo", {"Origin": "null"}, b"7", 403),
        ("/photo", {"Content-Length": "0"}, b"7", 400),
        ("/photo", {"Content-Length": "abc"}, b"7", 400),
        ("/photo", {"Content-Length": "64000001"}, b"7", 413),
    ],
)
def test_other_hosts_origins_and_paths_are_refused(
    address: str, path: str, headers: dict[str, str], body: bytes | None, code: int
) -> None:
    request = urllib.request.Request(address + path, body, headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    refused.value.close()
    assert refused.value.code == code


def test_a_port_in_use_or_out_of_range_is_reported(address: str) -> None:
    for port in (int(address.rpartition(":")[2]), 70_000):
        with pytest.raises(UserError, match=f"--port {port} cannot be used"):
            start_server([], port)


@pytest.mark.slow
def test_drawings_over_20_connections_are_answered_in_time_and_ctrl_c_exits_with_130(
    tmp_path: Path, report: Callable[[str], None]
) -> None:
    bodies = drawings(REQUESTS)
    process, port = start_demo(tmp_path)
    post_all(port, bodies[:40], 20)  # the first answers are slower
    seconds = post_all(port, bodies, 20)
    stop_demo(process, tmp_path, signal.SIGINT)
    assert max(seconds) < float("inf")
    median, p99 = np.quantile(seconds, [0.5, 0.99])
    report(f"{REQUESTS} drawings over 20 connections: median {1000 * median:.0f} ms, p99 {1000 * p99:.0f} ms")
    assert p99 < LIMIT_S
