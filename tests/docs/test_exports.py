"""Run the clients of `docs/exports.md` on files that were exported, and hold what they answer to the tolerance that is advertised."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from finetune import FineTuner, load
from finetune.exporting.formats import EXPORTERS, RESIZING_EXPORTERS
from finetune.inference.classifier import Classifier

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "exports.md"
HEADING = re.compile(r"^#{2,3} (.+)$", re.MULTILINE)
DECODES = "Python: onnxruntime, numpy, Pillow"
PREPARES = "Without resize=shared"
TOLERANCE = float(OmegaConf.load(ROOT / "conf" / "export.yaml").tolerance)


def blocks(heading: str) -> list[Any]:
    """The Python blocks below a heading."""
    document = Document.parse(str(PAGE), PythonCodeBlockParser())
    found = [e for e in document if [*HEADING.finditer(document.text, 0, e.start)][-1][1] == heading]
    assert found, heading
    return found


def made_photos(folder: Path) -> list[Path]:
    """Noise, which shows every way of resizing: of several sizes, turned by EXIF, grey, with transparency, CMYK, BMP."""
    rng = np.random.default_rng(0)
    kinds = [("RGB", (50, 71), "jpg"), ("RGB", (301, 200), "png"), ("L", (90, 120), "png"), ("RGBA", (70, 130), "png"),
             ("CMYK", (64, 80), "jpg"), ("RGB", (83, 64), "bmp")]  # fmt: skip
    paths = []
    for i, (mode, size, suffix) in enumerate(kinds):
        array = rng.integers(0, 256, (*size, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
        paths.append(folder / f"{i}_{mode}.{suffix}")
        image = Image.fromarray(array.squeeze(), mode)
        if i == 0:
            image.getexif()[0x0112] = 6
        image.save(paths[-1], exif=image.getexif() if suffix == "jpg" else None)
    return paths


class Clients:
    """A model, its exports, and photographs of which clients are asked."""

    def __init__(self, module: FineTuner, photos: list[Path], folder: Path) -> None:
        self.folder, self.photos = folder, photos
        with torch.no_grad():
            module.head.get_parameter("weight").normal_(
                std=0.01 if module.preprocess.size > 64 else 0.05, generator=torch.Generator().manual_seed(0)
            )
        module.save(folder / "best.ckpt")
        self.model: Classifier = load(folder / "best.ckpt", device="cpu", precision="32-true")
        exporters = {"own": EXPORTERS, "shared": RESIZING_EXPORTERS}
        for resize, kind in (("own", "onnx"), ("own", "state_dict"), ("shared", "onnx"), ("shared", "torch_export")):
            (folder / resize / kind).mkdir(parents=True)
            exporters[resize][kind](self.model.module, folder / resize / kind)

    def differences(self, answer: Callable[[], Any], photos: list[Path] | None = None) -> list[float]:
        """Largest difference to the probabilities of `predict`, for each photograph."""
        found = []
        for path in photos or self.photos:
            shutil.copy(path, "photo.jpg")
            expected = self.model.probabilities(path)[0].numpy()
            assert expected.max() < 0.999  # else any answer would do
            found.append(float(np.abs(np.asarray(answer()) - expected).max()))
        return found

    def python(self, heading: str, *before: str) -> list[float]:
        """The same, of the blocks below some headings, in one namespace."""

        def answer() -> Any:
            namespace: dict[str, Any] = {}
            for title in (*before, heading):
                for example in blocks(title):
                    exec(example.parsed, namespace)
            return namespace["probabilities"]

        return self.differences(answer)

    def python_process(self, heading: str, *before: str) -> list[float]:
        """The same, in another process."""
        code = "".join(example.parsed for title in (*before, heading) for example in blocks(title))
        program = f"""
import json, shutil, sys
answers = []
for path in sys.argv[1:]:
    shutil.copy(path, "photo.jpg")
    namespace = {{}}
    exec({code!r}, namespace)
    answers.append(namespace["probabilities"].tolist())
print(json.dumps(answers))
"""
        ran = subprocess.run([sys.executable, "-c", program, *self.photos], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        answers = iter(json.loads(ran.stdout.splitlines()[-1]))
        return self.differences(lambda: next(answers))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Clients:
    folder = tmp_path_factory.mktemp("made")
    module = FineTuner("squeezenet1_1", ["ants", "bees", "wasps"], weights="none", preprocess={"size": 64})
    return Clients(module, made_photos(folder), folder)


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Clients:
    weights = str(shared / "weights" / "squeezenet1_1-imagenet-features.pth")
    photos = sorted((shared / "data" / "hymenoptera_data" / "val").glob("*/*.jpg"))[::10]
    return Clients(
        FineTuner("squeezenet1_1", ["ants", "bees"], weights=weights), photos, tmp_path_factory.mktemp("real")
    )


@pytest.fixture(params=["made", pytest.param("real", marks=pytest.mark.real)])
def clients(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clients:
    """Of made and of real photographs; the clients work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    found: Clients = request.getfixturevalue(request.param)
    return found


def put(folder: Path) -> None:
    """Put an export where the page's clients look."""
    for path in folder.iterdir():
        shutil.copy(path, path.name)


@pytest.mark.slow
def test_onnxruntime_numpy_and_pillow_answer_as_predict(clients: Clients) -> None:
    put(clients.folder / "shared" / "onnx")
    assert max(clients.python(DECODES)) < TOLERANCE


@pytest.mark.slow
def test_the_shortest_client_answers_as_predict(clients: Clients) -> None:
    text = (ROOT / "docs" / "evaluate_predict_export.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "InferenceSession" in block)
    put(clients.folder / "shared" / "onnx")

    def answer() -> Any:
        namespace: dict[str, Any] = {}
        exec(code, namespace)
        return namespace["probabilities"]

    photos = [path for path in clients.photos if "RGBA" not in path.name]  # see docs/exports.md
    assert max(clients.differences(answer, photos)) < TOLERANCE


@pytest.mark.slow
def test_a_program_that_resizes_itself_as_the_page_says_answers_as_predict(clients: Clients) -> None:
    put(clients.folder / "shared" / "onnx")  # the blocks before are of that
    functions, run = blocks(PREPARES)[0].parsed.split("session =")

    def answer() -> Any:
        namespace: dict[str, Any] = {}
        for example in blocks(DECODES):
            exec(example.parsed, namespace)
        put(clients.folder / "own" / "onnx")
        exec(f"{functions}\nsession ={run}", namespace)
        put(clients.folder / "shared" / "onnx")
        return namespace["probabilities"]

    assert max(clients.differences(answer)) < TOLERANCE


@pytest.mark.slow
def test_pillow_resizes_otherwise_which_these_photographs_show(clients: Clients) -> None:
    """Else the tests above would pass whatever the page's clients do."""
    import onnxruntime

    session = onnxruntime.InferenceSession(clients.folder / "own" / "onnx" / "model.onnx")
    p = clients.model.module.preprocess

    def answer() -> Any:
        image = Image.open("photo.jpg").convert("RGB")
        image = image.resize([round(x * p.resize / min(image.size)) for x in image.size], Image.Resampling.BILINEAR)
        left, top = ((x - p.size) // 2 for x in image.size)
        pixels = np.asarray(image.crop((left, top, left + p.size, top + p.size))).transpose(2, 0, 1)
        return session.run(None, {"images": pixels[None]})[0][0]

    assert max(clients.differences(answer)) > 10 * TOLERANCE


@pytest.mark.slow
def test_torch_export_answers_as_predict(clients: Clients) -> None:
    put(clients.folder / "shared" / "onnx")
    put(clients.folder / "shared" / "torch_export")
    assert max(clients.python("torch.export", DECODES)) < TOLERANCE


@pytest.mark.slow
def test_openvino_answers_as_predict_but_for_single_pixels(clients: Clients) -> None:
    """In a process of its own.

    Its CPU plugin (2026.4) gives the thread an alternate stack for signals, and unmaps it with the last model; where that
    is freed in another thread, this one still has it, and the next signal is written over whatever lies there by then.
    """
    if find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    put(clients.folder / "shared" / "onnx")
    found = clients.python_process("OpenVINO", DECODES)
    assert max(found) < 10 * TOLERANCE
    assert np.median(found) < TOLERANCE


@pytest.mark.slow
def test_weights_in_plain_torchvision_answer_as_predict(clients: Clients) -> None:
    put(clients.folder / "own" / "onnx")
    (code,) = blocks("Weights in plain torchvision and timm")
    # functions alone: their sessions are of other files
    functions = [blocks(DECODES)[0].parsed.split("session =")[0], blocks(PREPARES)[0].parsed.split("session =")[0]]

    def answer() -> Any:
        put(clients.folder / "own" / "state_dict")
        namespace: dict[str, Any] = {}
        for part in (*functions, code.parsed):
            exec(part, namespace)
        return namespace["probabilities"]

    assert max(clients.differences(answer)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("package", ["onnxruntime-web", "onnxruntime-node"])
def test_node_answers_as_predict(package: str, clients: Clients) -> None:
    modules = Path(os.environ.get("FINETUNE_NODE", ROOT)) / "node_modules"
    missing = [name for name in (package, "sharp") if not (modules / name).is_dir()]
    if shutil.which("node") is None or missing:
        pytest.skip(f"node, {package} or sharp are not there: FINETUNE_NODE names the folder of node_modules")
    put(clients.folder / "shared" / "onnx")
    Path("node_modules").symlink_to(modules)
    (code,) = re.findall(r"```js\n(.*?)```", PAGE.read_text(), re.DOTALL)
    Path("client.mjs").write_text(code.replace("onnxruntime-web", package))

    def answer() -> Any:
        done = subprocess.run(["node", "client.mjs"], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    # CMYK it converts by a profile, transparency it rounds otherwise, BMP it does not read
    photos = [path for path in clients.photos if not path.stem.endswith(("CMYK", "RGBA")) and path.suffix != ".bmp"]
    assert max(clients.differences(answer, photos[:3])) < TOLERANCE
