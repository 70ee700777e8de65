"""Run the recipes of `docs/in_your_own_code.md`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from torch import Tensor, nn
from torch.optim import SGD

from finetune import FineTuner
from tests.helpers import CLASSES, SmallNetwork, make_batches

PAGE = Path(__file__).parents[2] / "docs" / "in_your_own_code.md"
HEADING = re.compile(r"^#{2,3} (.+)$", re.MULTILINE)


def parse() -> Document:
    return Document.parse(str(PAGE), SkipParser(), PythonCodeBlockParser())


def heading_of(document: Document, position: int) -> str:
    """The heading above a position; empty before the first one."""
    return next((m[1] for m in reversed([*HEADING.finditer(document.text, 0, position)])), "")


def headings_with_recipes() -> list[str]:
    document = parse()
    return list(filter(None, dict.fromkeys(heading_of(document, example.start) for example in document)))


@pytest.fixture
def page(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Document:
    """The page, read in a folder that holds `photos/`."""
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["script.py"])  # LightningCLI looks at it
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    return parse()


def run(page: Document, *headings: str) -> dict[str, Any]:
    """Run the blocks above the first heading, and those below some; return the names that they defined."""
    page.namespace["__name__"] = "__main__"
    for example in page:
        if heading_of(page, example.start) in ("", *headings):
            example.evaluate()
    return page.namespace


@pytest.mark.parametrize("heading", headings_with_recipes())
def test_the_recipes_below_a_heading_run_by_themselves(heading: str, page: Document) -> None:
    run(page, heading)


def fitted(cls: Any, trainer: Callable[..., Trainer], prepare: Callable[[Any], None] = lambda module: None) -> Any:
    """A module of the page's, trained on two epochs of two batches."""
    torch.manual_seed(3)
    module = cls(SmallNetwork(), CLASSES, "finetune", head="fc", optimizer=partial(SGD, lr=0.1))
    prepare(module)
    trainer(2).fit(module, make_batches(16), make_batches(16))
    return module


def by_hand(step: Callable[[nn.Module, Tensor, Tensor, SGD], None]) -> nn.Module:
    torch.manual_seed(3)
    network = FineTuner(SmallNetwork(), CLASSES, "finetune", head="fc").train().backbone
    optimizer = SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        for images, labels in make_batches(16):
            step(network, images, labels, optimizer)
    return network


def assert_equal_parameters(a: nn.Module, b: nn.Module) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4, msg=name)


def test_sam_of_the_page_is_a_loop_by_hand(page: Document, trainer: Callable[..., Trainer]) -> None:
    heading = next(h for h in headings_with_recipes() if h.startswith("SAM"))

    def step(network: nn.Module, images: Tensor, labels: Tensor, optimizer: SGD) -> None:
        weights = [p.detach().clone() for p in network.parameters()]
        nn.functional.cross_entropy(network(images), labels).backward()
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for p, g in zip(network.parameters(), gradients, strict=True):
            p.data = p.data + 0.05 * g / length
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        for p, w in zip(network.parameters(), weights, strict=True):
            p.data = w
        optimizer.step()
        optimizer.zero_grad()

    module = fitted(run(page, heading)["SAM"], trainer)
    assert_equal_parameters(module.backbone, by_hand(step))


def test_distillation_of_the_page_is_a_loop_by_hand(page: Document, trainer: Callable[..., Trainer]) -> None:
    torch.manual_seed(9)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))

    def step(network: nn.Module, images: Tensor, labels: Tensor, optimizer: SGD) -> None:
        optimizer.zero_grad()
        logits, taught = network(images), (teacher(images).detach() / 4).softmax(dim=1)
        soft = -(taught * (logits / 4).log_softmax(dim=1)).sum(dim=1).mean()
        hard = -logits.log_softmax(dim=1)[range(len(labels)), labels].mean()
        (8 * soft + hard / 2).backward()
        optimizer.step()

    cls = run(page, "Knowledge distillation")["Distilled"]
    module = fitted(cls, trainer, lambda module: module.use(teacher))
    assert_equal_parameters(module.backbone, by_hand(step))
    assert "teacher" not in "".join(module.state_dict())
