"""Keep several processes equivalent to one, and describe a step in errors."""

from __future__ import annotations

NAMED_FILES = 32
"""Images of a batch that an error names."""

DIVERGED_HINT = (
    "Try a smaller optimizer.lr (a tenth), or scheduler.warmup=1. The checkpoints written so far are good, and none was "
    "written after this."
)
