"""Test `finetune.training.hooks`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from finetune import FineTuner
from finetune.training.hooks import REQUIRED
from tests.helpers import CLASSES, SmallNetwork, make_batches

OF_A_FIT = [name for name in REQUIRED if name not in ("on_test_epoch_end", "on_load_checkpoint", "on_save_checkpoint")]


def silent(self: Any, *args: Any, **kwargs: Any) -> None:
    """Override a hook without calling it."""


def polite(name: str) -> Callable[..., Any]:
    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(type(self), self), name)(*args, **kwargs)

    return hook


def module_with(name: str, hook: Callable[..., Any]) -> FineTuner:
    own: Any = type("Own", (FineTuner,), {name: hook})
    module: FineTuner = own(SmallNetwork(), CLASSES, "finetune", head="fc")
    return module


@pytest.mark.parametrize("name", OF_A_FIT)
def test_a_hook_that_forgets_the_one_it_overrides_is_refused(name: str, trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(
        ValueError, match=rf"{name} of Own overrides FineTuner's, which it needs: call super\(\)\.{name}"
    ):
        trainer(1).fit(module_with(name, silent), make_batches(16), make_batches(16))
    trainer(1).fit(module_with(name, polite(name)), make_batches(16), make_batches(16))


def test_a_checkpoint_is_not_written_without_what_it_says_of_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on_save_checkpoint of Own overrides"):
        module_with("on_save_checkpoint", silent).save(tmp_path / "own.ckpt")
    module_with("on_save_checkpoint", polite("on_save_checkpoint")).save(tmp_path / "own.ckpt")
