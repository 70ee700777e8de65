"""Test `finetune.io.formats`."""

from __future__ import annotations

from finetune.io import formats


def test_skipped_files_are_counted_by_their_endings() -> None:
    assert formats.note_on_skipped_files([]) == []
    assert formats.note_on_skipped_files(["a/b.GIF"])[0].endswith(": 1 .gif")
    (note,) = formats.note_on_skipped_files(["a.gif", "b.GIF", "README", "c.txt", "d.gif"])
    assert note.startswith("5 files")
    assert note.endswith(": 3 .gif, 1 no extension, 1 .txt")
