"""Test `finetune.cli.validation`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.cli import arguments, validation
from tests.cli.helpers import compose_train
from tests.helpers import faults_of

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
    "model.preprocess=224": "model.preprocess takes keys and values, model.preprocess={KEY: VALUE}, got 224",
    "model.options=0.1": "model.options takes keys and values, model.options={KEY: VALUE}, got 0.1",
    "model.options=[drop_rate]": "model.options takes keys and values",
    "+loss.mixpu=1": "no key 'loss.mixpu'. The nearest are loss.mixup",
    "+paths.cache=x": "no key 'paths.cache'. The nearest are paths.cache",
    "+strategy.vews=3": "no key 'strategy.vews'. The nearest are strategy.views",
    "+data.bach=4": "no key 'data.bach'. The nearest are data.batch_size",
    "strategy.groups=[{match:'@head',rate:1}]": "no key 'strategy.groups[0].rate'",
    "strategy.groups=[{match:'@head',lr:-1}]": "strategy.groups[0].lr must be a number from 0 on, got -1",
    "strategy.groups=[{match:'@head',start:abc}]": "strategy.groups[0].start must be a number from 0 on, got abc",
    "optimizer.lr=-1": "optimizer.lr must be auto or a number from 0 on, got -1",
    "optimizer.lr=abc": "optimizer.lr must be auto or a number from 0 on, got abc",
    "optimizer.lr=nan": "optimizer.lr must be auto or a number from 0 on, got nan",
    "optimizer.lr=inf": "optimizer.lr must be auto or a number from 0 on, got inf",
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
    "data.class_depth=leafs": "data.class_depth is auto, leaf or a number from 1 on, got 'leafs'",
    "data.class_depth=0": "data.class_depth is auto, leaf or a number from 1 on, got 0",
    "data.layout=split": "no data.layout 'split'",
    "data.columns=breed": "data.columns says which column is what, {path: image_id, label: breed}; got 'breed'",
    "data.columns={lable:breed}": "no key of data.columns: 'lable'",
    "data.folds=1": "data.folds must be a whole number from 2 on, got 1",
    "data.fold=3": "data.fold=3 needs data.folds, the number of folds",
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


@pytest.mark.usefixtures("hydra_models")
@pytest.mark.parametrize(
    "word", [pytest.param(word, marks=[] if i % 4 == 0 else [pytest.mark.slow]) for i, word in enumerate(WRONG)]
)
def test_every_wrong_word_is_answered_before_torch(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = faults_of("train", *arguments.quote_paths([word]))
    assert len(found) == 1, found
    assert WRONG[word] in found[0]


@pytest.mark.usefixtures("hydra_models")
@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("predict", ["source=x"], "ckpt is missing"),
        ("predict", ["ckpt=x", "source=x", "top_k=0"], "top_k must be"),
        ("predict", ["source=x", "temperature=auto"], "temperature must be checkpoint or a number from 0.001 to 1000"),
        (
            "predict",
            ["source=x", "temperature=0"],
            "temperature must be checkpoint or a number from 0.001 to 1000, got 0",
        ),
        ("evaluate", ["temperature=-1"], "temperature must be checkpoint or a number from 0.001 to 1000, got -1"),
        ("evaluate", ["temperature=null"], "temperature must not be null; its default is checkpoint"),
        ("predict", ["source=x", "min_confidence=80"], "min_confidence must be a number from 0 to 1, got 80"),
        ("predict", ["source=x", "target_precision=95"], "target_precision must be a number from 0 to 1, got 95"),
        ("predict", ["source=x", "min_confidence=0.8", "target_precision=0.9"], "leave one of them out"),
        ("predict", ["source=x", "temperature=1", "target_precision=0.9"], "temperature=1 makes others: leave one"),
        ("evaluate", ["ckpt=x", "splitt=val"], "no key 'splitt'"),
        ("export", ["ckpt=x", "format=onxx"], "no format 'onxx'. The nearest is onnx"),
        ("rank", ["folds=2"], "folds must be a whole number from 3 to 20"),
        ("train", ["data.folds=3", "data.fold=3"], "with data.folds=3 it is one of 0 to 2, got 3"),
        (
            "evaluate",
            ["ckpt=x", "data.folds=3"],
            "data.folds changes nothing in evaluate: every image of the split is evaluated, once.",
        ),
        (
            "evaluate",
            ["ckpt=x", "data.depth=full"],
            "data.depth changes nothing in evaluate: images are prepared as the checkpoint says.",
        ),
        ("train", ["eval=folds"], "It is one of holdout, kfold."),
        ("train", ["eval=kfold"], "eval=kfold is for a head that is solved and not trained, strategy=linear_probe"),
        ("train", ["eval=kfold", "data.folds=3"], "data.folds=3 holds a fold out, and eval=kfold holds nothing out"),
        ("train", ["eval=kfold", "data.val=test"], "data.val=test says what to validate on, and eval=kfold"),
        ("train", ["eval=kfold", "strategy.views=3"], "evaluates each image once, as it is: strategy.views=1, got 3"),
        ("train", ["data.folds=3", "data.val=test"], "data.val=test says what to validate on, and data.folds=3"),
        (
            "check",
            ["data.root=.", "data.class_depth=leafs"],
            "data.class_depth is auto, leaf or a number from 1 on, got 'leafs'",
        ),
        ("rank", ["data.root=.", "data.fold=3"], "data.fold=3 needs data.folds"),
        ("check", ["phash_threshold=17"], "phash_threshold must be a whole number from 0 to 16"),
    ],
)
def test_other_commands_have_faults_too(
    name: str, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(message in fault for fault in faults_of(name, *arguments.quote_paths(words)))


@pytest.mark.usefixtures("hydra_configuration")
def test_check_reports_all_faults_at_once() -> None:
    cfg = compose_train("optimizer.lr=-1", "data.batch_size=0", "data.augment=trivail", "trainer.max_epochs=abc")
    with pytest.raises(ValueError, match=r"trivail") as error:
        validation.validate(cfg)
    first, *lines = str(error.value).splitlines()
    assert first == "4 things are wrong:"
    assert len(lines) == 4
    assert "nearest are trivial" in lines[0]
    assert "- optimizer.lr must be auto or a number from 0 on, got -1." in lines
    assert "- data.batch_size must be a whole number from 1 on, got 0." in lines
    assert "- trainer.max_epochs must be a whole number from -1 on, got abc." in lines


@pytest.mark.usefixtures("hydra_configuration")
@pytest.mark.parametrize(
    "override",
    [
        "seed=-1",
        "seed=4294967296",
        "data.val_fraction=1.2",
        "data.num_workers=-1",
        "data.num_workers=many",
        "loss.label_smoothing=2",
        "optimizer.lr=nan",
        "data.batch_size=2.5",
        "strategy.views=0",
        "loss.class_weights=some",
        "trainer.compile=yes",
        "data.per_class=0",
    ],
)
def test_check_ranges(override: str) -> None:
    with pytest.raises(ValueError, match=override.split("=")[0]):
        validation.validate(compose_train(override))


@pytest.mark.usefixtures("hydra_configuration")
def test_check_unknown_top_level_key_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no key 'modle'.*model"):
        validation.validate(compose_train("+modle=resnet18"))


@pytest.mark.usefixtures("hydra_models")
def test_a_group_that_is_no_regular_expression_is_refused_unless_a_table_may_have_such_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.csv").touch()
    group = "data.group=(patient"
    found = faults_of("train", *arguments.quote_paths(["data.root=.", group]))
    assert [fault.partition(" (")[0] for fault in found] == [
        "data.group='(patient' is neither a column of the data nor a regular expression"
    ]
    assert faults_of("train", *arguments.quote_paths(["data.root=table.csv", group])) == []
