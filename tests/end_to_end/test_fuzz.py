"""Feed damaged and hostile input, seeded and bounded: an error message in time, and nothing written elsewhere."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from finetune import FineTuner, load
from finetune.cli import arguments, groups, run_folder, validation
from finetune.images.decode import BadImageError, load_image, read_pixels
from finetune.io import paths
from finetune.io.download import extract_zip
from tests.helpers import faults_of, make_image

pytestmark = pytest.mark.slow

SECONDS = 5.0
"""That one damaged file may take."""


@contextmanager
def in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SECONDS


def answer(read: Callable[[], object], refusal: type[Exception]) -> str | None:
    """What something says that refuses its input; None if it took it. Any other error is a failure."""
    with in_time():
        try:
            read()
        except refusal as error:
            return str(error)
    return None


def mutated(content: bytes, draw: Random) -> bytes:
    """Flipped, cut, doubled, zeroed, or with a number of four bytes that lies."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at = draw.randrange(len(data)) if data else 0
        match draw.randrange(6):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[at:]
            case 2:
                data[at:at] = data[at : at + draw.randrange(200)]
            case 3:
                data[at : at + draw.randrange(50)] = bytes(draw.randrange(50))
            case 4:
                data[at : at + 4] = draw.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 20)).to_bytes(4, "big")
            case 5:
                data[at : at + 4] = draw.choice((0x7FFFFFFF, 0xFFFFFFFF, 1 << 24)).to_bytes(4, "little")
    return bytes(data)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def pictures() -> dict[str, bytes]:
    made = {}
    kinds: dict[str, dict[str, Any]] = {
        "a.jpg": {}, "b.jpg": {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}, "c.png": {},
        "d.bmp": {}, "e.tif": {"compression": "tiff_lzw"}, "f.webp": {}, "g.ppm": {}, "h.gif": {},
    }  # fmt: skip
    for name, options in kinds.items():
        content = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name[2:].upper())
        image = make_image(1, 48).convert("P") if name == "h.gif" else make_image(1, 48)
        image.save(content, kind, **options)
        made[name] = content.getvalue()
    return made


def test_two_thousand_mutated_pictures_are_read_or_refused(tmp_path: Path) -> None:
    draw, whole, refused = Random(0), pictures(), 0
    for i in range(2000):
        name = draw.choice(sorted(whole))
        path = tmp_path / name
        path.write_bytes(mutated(whole[name], draw))
        for read in (load_image, read_pixels):
            said = answer(partial(read, path), BadImageError)
            assert said is None or str(path) in said, i
            refused += said is not None
    assert 400 < refused < 3600  # of 4000: some are harmless, most are not
    assert files_below(tmp_path) <= set(whole)


def test_five_hundred_mutated_checkpoints_are_refused_or_the_same(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    module = FineTuner("squeezenet1_1", ["ants", "bees"], weights="none")
    module.save(path)
    whole, draw = path.read_bytes(), Random(0)
    right = load(path, device="cpu", precision="32-true").module.state_dict()
    silent, found = 0, dict[str, torch.Tensor]()
    for i in range(500):
        content = mutated(whole, draw)
        if draw.random() < 0.5:  # in the parts that describe the tensors, not in their bytes
            head = whole[: 1 << 16]
            content = mutated(head, draw) + whole[1 << 16 :]
        path.write_bytes(content)
        said = answer(
            lambda: found.update(load(path, device="cpu", precision="32-true").module.state_dict()), ValueError
        )
        assert said is None or str(path) in said, i
        silent += said is None
        assert said is not None or all(torch.equal(found[key], right[key]) for key in right), i
    assert silent < 100  # what is between the parts of an archive says nothing
    assert files_below(tmp_path) == {"best.ckpt"}


def test_five_hundred_mutated_archives_stay_inside_or_are_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("set/train/a/1.png", "set/train/b/2.png", "set/a/../b.txt", "/tmp/evil", "../evil"):
            file.writestr(name, name.encode() * 50)
    tame = io.BytesIO()
    with zipfile.ZipFile(tame, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("set/train/a/1.png", "set/train/b/2.png", "set/val/c.png"):
            file.writestr(name, name.encode() * 50)
    draw, refused = Random(0), 0
    for i in range(500):
        inside = tmp_path / "inside"
        inside.mkdir()
        (inside / "a.zip").write_bytes(mutated(draw.choice((content, tame)).getvalue(), draw))
        said = answer(partial(extract_zip, inside / "a.zip", inside / "out"), ValueError)
        assert said is None or not (inside / "out").exists(), i
        refused += said is not None
        assert files_below(tmp_path) <= {f"inside/{name}" for name in files_below(inside)} | {"inside"}
        assert all(name == "a.zip" or name.split("/")[0] == "out" for name in files_below(inside))
        for path in sorted(inside.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        inside.rmdir()
    assert refused > 250
    assert not Path("/tmp/evil").exists()


KEYS = [
    "model", "data", "strategy", "optimizer", "scheduler", "trainer", "logger", "callbacks", "experiment", "seed",
    "monitor", "report", "ckpt_path", "model.name", "model.weights", "model.preprocess", "data.root", "data.batch_size",
    "data.classes", "data.num_workers", "data.val_fraction", "data.augment", "data.dataset", "data.splits",
    "strategy.groups", "strategy.views", "strategy.layer_decay", "optimizer.lr", "optimizer._target_", "scheduler.warmup",
    "scheduler._target_", "trainer.max_epochs", "trainer.devices", "trainer.precision", "trainer._target_", "loss.mixup",
    "loss.class_weights", "paths.cache_dir", "paths.cache_gib", "hydra.run.dir", "hydra.job.name", "time_limit", "defaults", "",
]  # fmt: skip


VALUES = st.one_of(
    st.text(max_size=20),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.sampled_from([
        "null", "true", "[]", "{}", "[1,2]", "{a:1}", "[{}]", "[null]", "''", "???", "${seed}", "${oc.env:HOME}", "${x}", "${",
        "../../x", "os.system", "builtins.eval", "{_target_:os.system}", "1e999", "nan", "-0", "0x10", "a,b", "range(1,3)", "glob(*)",
        "[{match:'@head'}]", "[{match:'('}]", "{_target_:torch.optim.SGD}", "resnet18", "sgd", "~", "\\", "\u0000", "\ud800",
    ]),
)  # fmt: skip


WORDS = st.tuples(st.sampled_from(["", "+", "++", "~"]), st.sampled_from(KEYS) | st.text(max_size=12), VALUES)


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    OmegaConf.register_new_resolver("unique_dir", run_folder.unique_dir, replace=True)
    groups.register_models()
    yield tmp_path
    GlobalHydra.instance().clear()


@settings(max_examples=500, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(words=st.lists(WORDS, min_size=1, max_size=3))
def test_five_hundred_random_shell_lines_are_composed_or_explained(
    words: list[tuple[str, str, str]], in_empty_folder: Path
) -> None:
    line = [f"{sign}{key}={value}" for sign, key, value in words]
    line = [word for word in line if not word.startswith("-")]
    with in_time():
        found = faults_of("train", *arguments.quote_paths(line))
    assert all(isinstance(fault, str) and fault for fault in found)
    assert not any("Traceback" in fault or "object at 0x" in fault for fault in found)
    if not found:  # what passes can be resolved and checked again
        with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3"):
            validation.validate(hydra.compose("train", arguments.quote_paths(line)))
    assert files_below(in_empty_folder) == set()
