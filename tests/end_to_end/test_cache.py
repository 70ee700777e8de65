"""Run `finetune.cache`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from finetune.cache import main
from finetune.io.store import Cache
from tests.helpers import add_cache_entry


def test_command_lists_and_clears(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--dir", str(tmp_path / "none")])
    assert "Nothing is kept in" in capsys.readouterr().out
    cache = Cache(tmp_path)
    add_cache_entry(cache, "features of resnet18", 3 << 20, used=time.time() - 7300)
    add_cache_entry(cache, "pixels", 1000, used=time.time())
    main(["--dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert "features of resnet18" in out
    assert "3.0 MiB" in out
    assert "2 hours ago" in out
    assert out.index("pixels") < out.index("features of")  # the last used first
    main(["clear", "--dir", str(tmp_path)])
    assert "Removed 2 entries, 3.0 MiB" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
