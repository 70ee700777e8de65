"""Test `finetune.training.feature_store`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune.io.store import Cache
from finetune.models.partition import forward_to
from finetune.training import feature_store
from finetune.training.feature_store import VALUES, ExtractionSpec, FeatureStore


def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    values = torch.randn(10, 4, 3, 2)
    cache = Cache(tmp_path)
    path = cache.path("features", {"a": 1})
    shape = [10, 3, 2, 4]

    def fill(folder: Path) -> None:
        feature_store.write_rows(folder / VALUES, values.split(3), shape, "float32")

    cache.make(path, {"shape": shape}, values.nbytes, fill)
    file = FeatureStore(path)
    assert len(file) == 10
    assert torch.equal(file.take([3, 9, 0]), values[[3, 9, 0]])
    assert file.take([1, 2]).is_contiguous(memory_format=torch.channels_last)


class Cancelling(nn.Module):
    """A convolution whose large mean a BatchNorm takes away, so that 16 bits lose what is left."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 2)
        nn.init.normal_(self.conv.weight, 1.0, 0.1)
        self.norm.momentum = 1.0
        self.norm(self.conv(images))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(images)).mean(dim=(2, 3)))


def test_features_of_a_fused_network_are_found_again_in_16_bits(tmp_path: Path) -> None:
    images = 1 + 0.02 * torch.randn(6, 3, 8, 8)
    network = Cancelling(images)
    spec = ExtractionSpec(
        network, "fc", "fc", {"a": 1}, "features", 6, lambda: images.split(3), lambda: images[:1],
        lambda: torch.autocast("cpu", torch.bfloat16), fuse=True,
    )  # fmt: skip
    with torch.no_grad():
        whole = forward_to(network, "fc", images)
        with spec.context():
            rounded = forward_to(network, "fc", images)
    assert float((rounded - whole).norm() / whole.norm()) > 0.05
    computed = feature_store.extract_features(spec, Cache(tmp_path))
    assert 0 < computed.store.seconds <= computed.seconds + 0.001  # rounded
    found = feature_store.extract_features(spec, Cache(tmp_path))
    assert (found.seconds, found.store.seconds) == (0, computed.store.seconds)
    nn.init.normal_(network.conv.weight, 1.0, 0.1)  # which the key does not say here
    assert feature_store.extract_features(spec, Cache(tmp_path)).seconds > 0


def test_features_that_another_process_computes_meanwhile_are_not_those_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(6, 3, 8, 8)
    network = Cancelling(images)
    spec = ExtractionSpec(
        network, "fc", "fc", {"a": 1}, "features", 6, lambda: images.split(3), lambda: images[:1]
    )  # fmt: skip
    locked = Cache.locked

    @contextmanager
    def wait(cache: Cache, path: Path) -> Iterator[None]:
        monkeypatch.setattr(Cache, "locked", locked)
        feature_store.extract_features(spec, Cache(tmp_path))  # by another process, which holds the lock
        with locked(cache, path):
            yield

    monkeypatch.setattr(Cache, "locked", wait)
    waited = feature_store.extract_features(spec, Cache(tmp_path))
    assert waited.seconds >= waited.store.seconds - 0.001  # so that nothing was saved
    assert feature_store.extract_features(spec, Cache(tmp_path)).seconds == 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat_however_large_the_file(tmp_path: Path) -> None:
    rows, width = 50_000, 4096  # 0.8 GB
    cache = Cache(tmp_path)
    path = cache.path("features", {})

    def fill(folder: Path) -> None:
        feature_store.write_rows(
            folder / VALUES, (torch.full((500, width), float(k)) for k in range(100)), [rows, width], "float32"
        )

    cache.make(path, {"shape": [rows, width]}, rows * width * 4, fill)
    file = FeatureStore(path)

    def resident() -> float:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    before, peak = resident(), 0.0
    order = torch.randperm(rows).tolist()
    for k in range(0, rows, 250):
        batch = file.take(order[k : k + 250])
        assert batch[0, 0] == order[k] // 500
        peak = max(peak, resident() - before)
    assert peak < 450  # of 781 MiB; the bound is 256 of pages and what surrounds them
