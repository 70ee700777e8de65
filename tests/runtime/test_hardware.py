"""Test `finetune.runtime.hardware`."""

from __future__ import annotations

import pytest
import torch

from finetune.runtime import hardware


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "fma"}, "32-true"),
        ({"avx512f"}, "32-true"),
        ({"avx512_bf16"}, "bf16-mixed"),
        ({"amx_bf16"}, "bf16-mixed"),
    ],
)
def test_precision_of_a_cpu_is_what_it_computes_natively(
    flags: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset(flags))
    assert hardware.native_precision("cpu") == expected
    assert hardware.native_precision("mps") == "32-true"


@pytest.mark.parametrize(
    ("bf16", "capability", "expected"),
    [(True, (8, 0), "bf16-mixed"), (False, (7, 5), "16-mixed"), (False, (6, 1), "32-true")],
)
def test_precision_of_a_gpu(
    bf16: bool, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert hardware.native_precision("cuda") == expected


@pytest.mark.parametrize(
    ("cores", "images", "on_cpu", "expected"),
    [(2, 1000, True, 0), (8, 1000, True, 2), (64, 1000, True, 4), (16, 1000, False, 16), (64, 1000, False, 16),
     (1, 1000, False, 0), (16, 10, False, 0)],
)  # fmt: skip
def test_workers_leave_the_cpu_to_a_network_that_computes_on_it(
    cores: int, images: int, on_cpu: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_count", lambda: cores)
    monkeypatch.setattr(hardware, "free_memory", lambda: 2**36)
    assert hardware.default_num_workers(images, on_cpu) == expected
    assert hardware.default_num_workers(images, on_cpu, processes=cores) == 0
    monkeypatch.setattr(hardware, "free_memory", lambda: 3 * hardware.WORKER_BYTES)
    assert hardware.default_num_workers(images, on_cpu) == min(expected, 3)


def test_free_memory_is_less_than_there_is() -> None:
    assert 0 < hardware.free_memory() < 2**44


def test_keep_freed_memory_can_be_called_twice() -> None:
    hardware.keep_freed_memory()
    hardware.keep_freed_memory()


def test_workers_need_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_count", lambda: 16)
    monkeypatch.setattr(hardware, "free_memory", lambda: 1 << 40)
    monkeypatch.setattr(hardware, "free_shared_memory", lambda: 1 << 40)
    assert hardware.default_num_workers(1000, on_cpu=True) == 4
    monkeypatch.setattr(hardware, "free_shared_memory", lambda: 1 << 20)
    assert hardware.default_num_workers(1000, on_cpu=True) == 0
