"""Test `finetune.reporting.evaluations`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.reporting import evaluations
from tests.reporting.helpers import write_evaluation_folder

A = {
    "a.png": ("cat", "cat"),
    "b.png": ("cat", "dog"),
    "c.png": ("dog", "dog"),
    "d.png": ("dog", "emu"),
    "e.png": ("dog", "cat"),
}
B = {
    "e.png": ("dog", "dog"),
    "a.png": ("cat", "dog"),
    "b.png": ("cat", "cat"),
    "c.png": ("dog", "dog"),
    "d.png": ("dog", "cat"),
}


def compared(*folders: Path) -> list[evaluations.Evaluation]:
    found = [evaluations.read_evaluation(folder) for folder in folders]
    evaluations.compare_evaluations(found)
    return found


def test_images_that_changed_are_found_whatever_their_order(tmp_path: Path) -> None:
    first, second = compared(write_evaluation_folder(tmp_path / "a", A), write_evaluation_folder(tmp_path / "b", B))
    assert (first.n_correct, second.n_correct) == (2, 3)
    assert {(c.path, c.kind) for c in second.changes} == {
        ("a.png", "lost"), ("b.png", "gained"), ("e.png", "gained"), ("d.png", "other"),
    }  # fmt: skip
    assert (first.test, first.changes) == (None, [])
    assert second.test is not None
    assert second.test.p == 1  # 1 of 3 by chance, or worse
    expected = "1 more correct (1 became wrong, 2 became right, 1 wrong in another way); not significant (p = 1)"
    assert second.description == expected


def test_p_values_of_several_models_are_those_of_coins_corrected_by_holm(tmp_path: Path) -> None:
    true = {f"{i}.png": ("cat", "dog") for i in range(20)}
    gained = [{path: ("cat", "cat" if i < n else "dog") for i, path in enumerate(true)} for n in (8, 5)]
    folders = [
        write_evaluation_folder(tmp_path / name, images) for name, images in zip("abc", [true, *gained], strict=True)
    ]
    _, b, c = compared(*folders)
    assert b.test is not None
    assert c.test is not None
    assert b.test.p == pytest.approx(2 * 2 / 2**8)
    assert c.test.p == pytest.approx(2 / 2**5)
    assert b.test.significant


def test_the_same_predictions_are_said_to_be_the_same(tmp_path: Path) -> None:
    _, second = compared(write_evaluation_folder(tmp_path / "a", A), write_evaluation_folder(tmp_path / "b", A))
    assert second.description == "the same label for every image"


def test_names_are_models_and_as_much_more_as_distinguishes_them(tmp_path: Path) -> None:
    values = [
        {"model": "resnet18", "ckpt": "runs/old/checkpoints/best.ckpt"},
        {"model": "resnet18", "ckpt": "runs/new"},
        {"model": "resnet18", "ckpt": "runs/new", "tta": "flip"},
    ]
    folders = [write_evaluation_folder(tmp_path / str(i), A, **v) for i, v in enumerate(values)]
    assert [e.label for e in compared(*folders)] == [
        "resnet18 old tta=none",
        "resnet18 new tta=none",
        "resnet18 new tta=flip",
    ]
    other = write_evaluation_folder(tmp_path / "other", A, model="alexnet")
    assert [e.label for e in compared(folders[0], other)] == ["resnet18", "alexnet"]


def test_evaluations_of_other_images_labels_or_files_are_refused(tmp_path: Path) -> None:
    a = write_evaluation_folder(tmp_path / "a", A, content="1")
    fewer = write_evaluation_folder(tmp_path / "b", {path: v for path, v in A.items() if path != "c.png"})
    with pytest.raises(ValueError, match=r"of different images: 1 of 5 are in .*a alone \(c\.png\).*data\.root=FOLDER"):
        compared(a, fewer)
    relabelled = write_evaluation_folder(tmp_path / "c", {**A, "e.png": ("emu", "emu")})
    with pytest.raises(ValueError, match=r"The true label of e\.png is dog in .*a and emu in .*c"):
        compared(a, relabelled)
    with pytest.raises(ValueError, match="different files of the same names"):
        compared(a, write_evaluation_folder(tmp_path / "d", A, content="2"))


def test_a_damaged_evaluation_is_named(tmp_path: Path) -> None:
    folder = write_evaluation_folder(tmp_path / "a", A)
    text = (folder / "predictions.csv").read_text()
    (folder / "predictions.csv").write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(ValueError, match=r"a: this evaluation cannot be read.*4 images and evaluation\.json 5"):
        evaluations.read_evaluation(folder)


def test_evaluations_are_found_in_folders_and_sweeps_but_not_within_runs(tmp_path: Path) -> None:
    for name in ("sweep/0", "sweep/1", "run/evaluation"):
        write_evaluation_folder(tmp_path / name, A)
    (tmp_path / "run" / "metrics.json").touch()
    sweep, run = tmp_path / "sweep", tmp_path / "run"
    assert evaluations.find_evaluations([sweep / "1", sweep, run]) == [sweep / "1", sweep / "0"]


def test_one_evaluation_or_a_run_beside_one_is_refused(tmp_path: Path) -> None:
    a, run = write_evaluation_folder(tmp_path / "a", A), tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match=r"a is one evaluation: give two or more"):
        evaluations.require_evaluations_only([a], [a])
    with pytest.raises(ValueError, match=r"run is none: python -m finetune\.evaluate ckpt=.*run makes one"):
        evaluations.require_evaluations_only([a, run], [a])
    with pytest.raises(ValueError, match=r"there is no .*nothing"):
        evaluations.require_evaluations_only([a, tmp_path / "nothing"], [a])
