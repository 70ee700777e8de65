"""Test `finetune.models.timm_catalog`: weights come from a hub, here on 127.0.0.1, which is needed once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from finetune.models import timm_catalog
from finetune.models.backbone import Backbone

timm = pytest.importorskip("timm")

CREATE = """
import hashlib, sys
from finetune.models.backbone import Backbone
try:
    backbone = Backbone.create("timm:test_resnet", in_channels=int(sys.argv[1]))
except FileNotFoundError as error:
    sys.exit(str(error))
print(hashlib.sha256(backbone.network.conv1[0].weight.detach().numpy().tobytes()).hexdigest())
print(backbone.weights_source)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[ThreadingHTTPServer, torch.nn.Module, list[str]]]:
    """A hub with the weights of one network, that network, and the requests that came."""
    from safetensors.torch import save

    torch.manual_seed(1)
    network = timm.create_model("test_resnet")
    content = save(network.state_dict())
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(b"")

        def do_GET(self) -> None:
            self._answer(content)

        def _answer(self, body: bytes) -> None:
            requests.append(self.path)
            found = self.path == "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
            self.send_response(200 if found else 404)
            if found:
                self.send_header("X-Repo-Commit", "1" * 40)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(body if found else b"")

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, network, requests
    server.shutdown()
    server.server_close()


def _create(tmp_path: Path, endpoint: str, channels: int = 3) -> subprocess.CompletedProcess[str]:
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), "")
    environment = {
        **os.environ, **proxies, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", CREATE, str(channels)], env=environment, capture_output=True, text=True, timeout=120
    )


def _digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.detach().numpy().tobytes()).hexdigest()


@pytest.mark.slow
def test_weights_are_fetched_once_and_then_taken_from_the_cache_without_a_network(
    hub: tuple[ThreadingHTTPServer, torch.nn.Module, list[str]], tmp_path: Path
) -> None:
    server, network, requests = hub
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    first = _create(tmp_path, endpoint)
    assert first.stdout.split()[:1] == [_digest(network.get_parameter("conv1.0.weight"))], first.stderr
    assert "timm's timm/test_resnet.r160_in1k" in first.stdout
    asked = len(requests)
    assert asked > 0
    again = _create(tmp_path, endpoint)
    assert again.stdout == first.stdout
    assert len(requests) == asked  # not even asked whether they have changed
    grey = _create(tmp_path, endpoint, channels=1)
    # timm's adapt_input_conv: one channel is the sum of three
    assert grey.stdout.split()[:1] == [_digest(network.get_parameter("conv1.0.weight").sum(dim=1, keepdim=True))], (
        grey.stderr
    )


def test_a_machine_without_a_network_is_told_what_to_do_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://no-such-host.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm_catalog, "getproxies", dict)
    with pytest.raises(
        FileNotFoundError, match=r"timm:test_resnet \(timm/test_resnet.r160_in1k\) .*no-such-host.invalid.*=FILE"
    ):
        Backbone.create("timm:test_resnet")
