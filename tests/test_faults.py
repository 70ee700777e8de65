"""Wrong words: each is answered with the key, what was given, what is known, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TINY, faults_of
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from finetune import train
from finetune.cli import arguments, compose, groups, run_folder


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    OmegaConf.register_new_resolver("unique_dir", run_folder.unique_dir, replace=True)
    groups.register_models()
    yield
    GlobalHydra.instance().clear()


WRONG = {
    "lr=0.1": "no key 'lr'. Did you mean optimizer.lr? ",
    "batchsize=3": "no key 'batchsize'. Did you mean data.batch_size? ",
    "modle=resnet18": "no key 'modle'. Did you mean model",
    "+modle=resnet18": "no key 'modle'. The nearest are model",
    "model=resnet19": "no model 'resnet19'. The nearest are",
    "experiment=tutorial": "no experiment 'tutorial'. The nearest are tutorial_scratch",
    "model.weights=a b=c.pth": "model.weights=a b=c.pth: there is no such file",
    "strategy=fine_tune": "no strategy 'fine_tune'. The nearest are finetune",
    "optimizer.learning_rate=1": "no key 'optimizer.learning_rate'. Did you mean",
    "+trainer.max_epoch=3": "no key 'trainer.max_epoch'. The nearest are trainer.max_epochs",
    "+model.wieghts=none": "no key 'model.wieghts'. The nearest are model.weights",
    "+model.preprocess={interpolation:cubic}": "no model.preprocess.interpolation 'cubic'. The nearest are bicubic",
    "+model.preprocess={sise:224}": "no key 'model.preprocess.sise'. The nearest are model.preprocess.size",
    "+loss.mixpu=1": "no key 'loss.mixpu'. The nearest are loss.mixup",
    "+paths.cache=x": "no key 'paths.cache'. The nearest are paths.cache",
    "+strategy.vews=3": "no key 'strategy.vews'. The nearest are strategy.views",
    "+data.bach=4": "no key 'data.bach'. The nearest are data.batch_size",
    "strategy.groups=[{match:'@head',rate:1}]": "no key 'strategy.groups[0].rate'",
    "strategy.groups=[{match:'@head',lr:-1}]": "strategy.groups[0].lr must be a number from 0 on, got -1",
    "strategy.groups=[{match:'@head',start:abc}]": "strategy.groups[0].start must be a number from 0 on, got abc",
    "optimizer.lr=-1": "optimizer.lr must be a number from 0 on, got -1",
    "optimizer.lr=abc": "optimizer.lr must be a number from 0 on, got abc",
    "optimizer.lr=nan": "optimizer.lr must be a number from 0 on, got nan",
    "optimizer.lr=inf": "optimizer.lr must be a number from 0 on, got inf",
    "optimizer.lr=null": "optimizer.lr must not be null",
    "optimizer.momentum=2": "optimizer.momentum must be a number from 0 to 1",
    "seed=-1": "seed must be a whole number from 0 to 4294967295, got -1",
    "seed=4294967296": "seed must be a whole number from 0 to 4294967295, got 4294967296",
    "seed=[1,2]": "seed must be a whole number from 0 to 4294967295, got [1, 2]",
    "data.batch_size=0": "data.batch_size must be a whole number from 1 on, got 0",
    "data.batch_size=2.5": "data.batch_size must be a whole number from 1 on, got 2.5",
    "data.batch_size={a:1}": "data.batch_size must be a whole number from 1 on",
    "data.batch_size=true": "data.batch_size must be a whole number from 1 on, got True",
    "data.val_fraction=1.5": "data.val_fraction must be a number from 0.001 to 0.9",
    "data.num_workers=many": "data.num_workers must be auto or a whole number",
    "data.classes=ants": "data.classes is a list, data.classes=[ants,...]",
    "data.augment=trivail": "no data.augment 'trivail'. The nearest are trivial",
    "data.image_size=99999": "data.image_size must be a whole number from 1 to 4096",
    "data.per_class=0": "data.per_class must be",
    "strategy.views=0": "strategy.views must be a whole number from 1 on",
    "strategy.cache=maybe": "no strategy.cache 'maybe'",
    "loss.label_smoothing=2": "loss.label_smoothing must be",
    "loss.aux=-1": "loss.aux must be",
    "loss.class_weights=some": "no loss.class_weights 'some'",
    "trainer.max_epochs=abc": "trainer.max_epochs must be",
    "trainer.max_epochs=1.5": "trainer.max_epochs must be",
    "trainer.precision=fp16": "no trainer.precision 'fp16'",
    "trainer.accelerator=gpus": "no trainer.accelerator 'gpus'. The nearest are gpu",
    "trainer.devices=0": "trainer.devices must be auto, a whole number from 1 on",
    "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches must be",
    "trainer.check_val_every_n_epoch=20": "monitor=val/acc would never be measured",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch must be",
    "+trainer.limit_val_batches=0": "monitor=val/acc would never be measured",
    "+trainer.callbacks=x": "no key 'trainer.callbacks'",
    "trainer.compile=perhaps": "no trainer.compile 'perhaps'",
    "monitor=val/accuracy": "no metric 'val/accuracy'. The nearest are val/auroc, val/acc",
    "monitor=3": "no metric '3'",
    "report=maybe": "report must be true or false, got maybe",
    "model=null": "no model 'null'",
    "data=null": "no data 'null'",
    "data=5": "no data '5'",
    "trainer=null": "no trainer 'null'",
    "optimizer=null": "no optimizer 'null'",
    "optimizer=5": "no optimizer '5'",
    "data.root=nowhere": "data.root=nowhere: there is no such folder",
    "data.root=${nothing}": "data.root=${nothing}: Interpolation key 'nothing' not found",
    "optimizer.lr=[1": "cannot be read as key=value",
    "justaword": "is not key=value",
    "=5": "'=5'",
    "ckpt_path=nowhere": "ckpt_path=nowhere: there is no such file",
    "model.weights=no/such.pth": "model.weights=no/such.pth: there is no such file",
    "optimizer._target_=os.system": "optimizer._target_=os.system is not allowed",
    "scheduler._target_=torch.load": "scheduler._target_=torch.load is not allowed",
    "+callbacks.x._target_=builtins.open": "callbacks.x._target_=builtins.open is not allowed",
    "+optimizer.hook={_target_:torch.hub.load}": "optimizer.hook._target_=torch.hub.load is not allowed",
    "data.dataset={_target_:pathlib.Path}": "data.dataset._target_=pathlib.Path is not allowed",
    "trainer._target_=subprocess.run": "trainer._target_=subprocess.run is not allowed",
}


@pytest.mark.parametrize(
    "word", [pytest.param(word, marks=[] if i % 4 == 0 else [pytest.mark.slow]) for i, word in enumerate(WRONG)]
)
def test_every_wrong_word_is_answered_before_torch(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = faults_of("train", *arguments.quote_paths([word]))
    assert len(found) == 1, found
    assert WRONG[word] in found[0]


def test_all_faults_are_reported_together_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["modle=x", "model=resnet19", "optimizer.lrr=1", "data.batch_size=0", "[1=", "strategy.views=0", "seed=1"]
    with pytest.raises(SystemExit) as stop:
        train.main(words)
    assert stop.value.code == 2
    first, *lines = capsys.readouterr().err.strip().splitlines()
    assert first == "error: 6 things are wrong:"
    assert len(lines) == 6, lines
    for word, line in zip(("lrr", "modle", "resnet19", "[1=", "batch_size", "views"), sorted_as(lines), strict=True):
        assert word in line
    assert list(tmp_path.iterdir()) == []


def test_all_faults_of_a_sweep_are_reported_together_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main(
            ["-m", "modle=x", "seed=0,1", "model=resnet19,resnet18", "data.batch_size=range(0,9)", "optimizer=sgd"]
        )
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "3 things are wrong" in error
    for word in ("modle", "resnet19", "data.batch_size must be"):
        assert word in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["seed=0,1", "+a=choice(x,y)", "b=range(2,5)", "c=1"], ["seed=0", "+a=x", "b=2", "c=1"]),
        (["data.root='a,b'"], ["data.root='a,b'"]),
        (["optimizer.lr=interval(0, 1)", "seed=1"], None),
        (["model=glob(res*)", "seed=1"], None),
        (["[1=", "seed=3,2"], ["[1=", "seed=3"]),
    ],
)
def test_first_point_of_a_sweep(words: list[str], first: list[str] | None) -> None:
    assert compose.first_point(words) == first


def sorted_as(lines: list[str]) -> list[str]:
    """Hydra looks at the words in an order of its own."""
    order = ("lrr", "modle", "resnet19", "[1=", "batch_size", "views")
    return sorted(lines, key=lambda line: next(i for i, word in enumerate(order) if word in line))


def test_wrong_words_are_answered_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from finetune import train; train.main(['modle=x', 'data.batch_size=0', '+trainer.max_epoch=1'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 4
    assert "3 things are wrong" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_root_that_was_typed_is_not_where_examples_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "data=imagefolder" in faults_of("train", 'data.root="fotos"')[0]
    assert faults_of("train", "data=hymenoptera", 'data.root="ants"') == []  # to be fetched there
    (tmp_path / "fotos").mkdir()
    assert faults_of("train", 'data.root="fotos"') == []


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("predict", ["source=x"], "ckpt is missing"),
        ("predict", ["ckpt=x", "source=x", "top_k=0"], "top_k must be"),
        ("evaluate", ["ckpt=x", "splitt=val"], "no key 'splitt'"),
        ("export", ["ckpt=x", "format=onxx"], "no format 'onxx'. The nearest are onnx"),
        ("check", ["phash_threshold=17"], "phash_threshold must be a whole number from 0 to 16"),
    ],
)
def test_other_commands_have_faults_too(
    name: str, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(message in fault for fault in faults_of(name, *arguments.quote_paths(words)))


def test_a_sweep_over_several_devices_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data=imagefolder", f"data.root={photos}", "trainer=ddp", "trainer.devices=2", "-m", "seed=0,1"]
    with pytest.raises(SystemExit) as stop:
        train.main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "one device a run" in error
    assert "for seed in" in error


def test_a_run_without_an_end_says_so(
    command: Callable[..., tuple[Path, int]], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("train", *TINY, f"data.root={photos}", "trainer.max_epochs=-1", "+trainer.max_steps=3")
    assert "no end was given" in capsys.readouterr().out
