"""Test `finetune.cli.factories`."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.cli import factories
from finetune.metrics.classification import monitor_mode


@pytest.mark.parametrize(("monitor", "mode"), [("val/loss", "min"), ("val/acc", "max")])
def test_a_callback_that_is_to_find_out_stops_when_its_metric_gets_worse(monitor: str, mode: str) -> None:
    spec = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": monitor, "mode": "auto", "patience": 3}
    callback: Any = factories.make_callback(spec, monitor_mode)
    assert (callback.mode, callback.patience) == (mode, 3)
    assert spec["mode"] == "auto"  # the configuration is left as it is
    fixed: Any = factories.make_callback({**spec, "mode": "max"}, monitor_mode)
    assert fixed.mode == "max"


def test_a_callback_of_no_allowed_package_is_refused() -> None:
    with pytest.raises(ValueError, match=r"subprocess\.Popen is not allowed"):
        factories.make_callback({"_target_": "subprocess.Popen", "args": "true"}, monitor_mode)
