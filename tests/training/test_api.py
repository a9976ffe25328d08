"""A run as a whole: what it computes, and that nothing is lost however it is stopped."""

from __future__ import annotations

import errno
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import (
    CLASSES,
    FEATURES,
    assert_same_run,
    assert_same_tensors,
    edit_json,
    rows,
    tensors,
    tiny_data,
)
from torch import nn

from fastmlp.data.sampling import epoch_order
from fastmlp.data.transforms import make_normalization
from fastmlp.engines.reference import mlp_ref, train_epoch_ref
from fastmlp.nn.init import initial_parameters
from fastmlp.ops._load import native_available
from fastmlp.training.api import fit, resume
from fastmlp.training.config import TrainConfig
from fastmlp.training.run import DivergedError, RunResult
from fastmlp.utils.errors import UserError
from fastmlp.utils.formats import read_json

DATA = tiny_data()
# 12 steps an epoch, with a chance to stop after each; more threads only slow it down.
CONFIG = TrainConfig(hidden=(16,), batch_size=8, epochs=3, lr=0.05, device="cpu", threads=1)
CONFIG = replace(CONFIG, engine="eager" if native_available() else "reference")
native = pytest.mark.skipif(not native_available(), reason="the compiled kernels are not there")
ENGINES = [
    *(pytest.param(name, marks=native) for name in ("blocked", "native", "eager")),
    "reference",
]


@pytest.fixture(autouse=True)
def _no_drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than these runs; plotting/test_curves.py looks at them."""
    if "draws" not in request.fixturenames:
        monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", lambda *args: None)


@pytest.fixture
def draws() -> None:
    """The test wants its picture."""


def stop_after(steps: int) -> Any:
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count > steps  # the loop over epochs asks once before each of them

    return stop


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_is_what_plain_pytorch_computes(engine: str) -> None:
    config = replace(CONFIG, engine=engine, epochs=4, normalize="unit", weight_decay=0.01)
    config = replace(config, lr_decay=0.5, lr_schedule="constant", momentum=0.0, nesterov=False)
    run = fit(config, DATA)
    parameters = list(initial_parameters([FEATURES, 16, CLASSES], "kaiming", 0).values())
    train, val, test = DATA.train, DATA.val, DATA.test
    apply = make_normalization("unit", train.images).apply
    best, best_test = -1.0, 0.0
    for epoch in range(4):
        losses, correct = train_epoch_ref(
            parameters,
            train.images,
            train.labels,
            epoch_order(0, epoch, 90),
            8,
            0.05 * 0.5**epoch,
            weight_decay=0.01,
            normalize=apply,
        )
        record = run.history[epoch]
        sizes = torch.tensor([8.0] * 11 + [2.0])
        assert record.train_loss == pytest.approx(float((losses * sizes).sum() / 90), abs=2e-6)
        assert record.train_acc == pytest.approx(correct / 90, abs=1e-6)
        assert (record.epoch, record.lr) == (epoch + 1, 0.05 * 0.5**epoch)
        with torch.no_grad():
            logits = mlp_ref(parameters, apply(val.images))
            accuracy = float((logits.argmax(1) == val.labels).float().mean())
            loss = float(nn.functional.cross_entropy(logits, val.labels))
            hits = mlp_ref(parameters, apply(test.images)).argmax(1) == test.labels
        assert record.val_acc == pytest.approx(accuracy, abs=1e-6)
        assert record.val_loss == pytest.approx(loss, abs=2e-6)
        if accuracy > best:
            best, best_test = accuracy, float(hits.float().mean())
    assert run.test is not None
    assert run.test.accuracy == pytest.approx(best_test)
    assert run.summary["best"]["val_acc"] == pytest.approx(best, abs=1e-6)


def test_the_seed_decides_the_start_and_every_order() -> None:
    orders = [epoch_order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    for i, order in enumerate(orders):
        assert torch.equal(order.sort().values, torch.arange(50))
        assert not any(torch.equal(order, other) for other in orders[:i])
    assert torch.equal(epoch_order(1, 1, 50), orders[3])
    before = torch.get_rng_state()
    first, again, other = (initial_parameters([5, 4, 3], "kaiming", seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_tensors(first, again)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert fit(CONFIG, DATA).history[-1].val_loss == fit(CONFIG, DATA).history[-1].val_loss
    assert fit(replace(CONFIG, seed=1), DATA).history[0].train_loss != pytest.approx(
        fit(CONFIG, DATA).history[0].train_loss, rel=1e-4
    )


def test_the_files_of_a_run(tmp_path: Path, draws: None) -> None:
    folder = tmp_path / "a" / "run"
    run = fit(replace(CONFIG, engine="auto", save_every=2), DATA, out=folder)
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "config.json",
        "metrics.csv",
        "best.pt",
        "last.pt",
        "resume.pt",
        "resume.previous.pt",
        "summary.json",
        "curves.png",
    }
    table = rows(folder)
    assert list(table[0]) == [
        *("epoch", "train_loss", "train_acc", "val_loss", "val_acc"),
        *("lr", "seconds", "images_per_s"),
    ]
    assert [int(row["epoch"]) for row in table] == [1, 2, 3]
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    apply = make_normalization("standard", DATA.train.images).apply
    val, test = DATA.val, DATA.test
    model.load_state_dict(tensors(folder / "last.pt"))
    accuracy = (model(apply(val.images)).argmax(1) == val.labels).float().mean().item()
    assert float(table[-1]["val_acc"]) == pytest.approx(accuracy, abs=1e-6)
    model.load_state_dict(tensors(folder / "best.pt"))
    accuracy = (model(apply(val.images)).argmax(1) == val.labels).float().mean().item()
    assert max(float(row["val_acc"]) for row in table) == pytest.approx(accuracy, abs=1e-6)
    assert_same_tensors(tensors(folder / "best.pt"), run.best_parameters)
    summary = read_json(folder / "summary.json")
    accuracy = (model(apply(test.images)).argmax(1) == test.labels).float().mean().item()
    assert summary["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert summary == run.summary
    assert (summary["epochs"], summary["last"]["epoch"]) == (3, 3)
    assert (summary["dataset"], summary["synthetic"], summary["seed"]) == ("tiny0", False, 0)
    assert summary["versions"]["torch"] == torch.__version__
    assert {"engine", "engine_reason", "device_name", "git_commit"} <= set(summary)
    config = read_json(folder / "config.json")
    assert config["engine"] in ("blocked", "reference")  # "auto" is resolved
    assert config["threads"] == 1
    assert config == summary["config"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("save_every", [1, 5])
def test_stopped_anywhere_a_run_goes_on_bit_by_bit(
    engine: str, save_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmlp.engines.compiled.CALL_SECONDS", 0.0)  # every call is one block
    config = replace(CONFIG, engine=engine, save_every=save_every)
    calls = 0

    def count() -> bool:
        nonlocal calls
        calls += 1
        return False

    fit(config, DATA, out=tmp_path / "whole", should_stop=count)
    last = calls - 2  # what the last chance to stop comes after
    assert last == (7 if engine == "blocked" else 37)  # two blocks an epoch
    for steps in (step for step in (0, 1, 3, 5, 7, 12, 13, 14, 20, 37) if step <= last):
        folder = tmp_path / f"after {steps}"
        run = fit(config, DATA, out=folder, should_stop=stop_after(steps))
        assert run.interrupted
        assert not (folder / "summary.json").exists()
        again = resume(folder, DATA, should_stop=stop_after(1))  # and stopped once more
        assert again.interrupted or steps == last
        assert not resume(folder, DATA).interrupted
        assert_same_run(folder, tmp_path / "whole")


def test_a_stop_lets_the_step_finish_and_no_other_begins(tmp_path: Path) -> None:
    run = fit(CONFIG, DATA, out=tmp_path, should_stop=stop_after(7))
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert (len(run.history), state["partial"]["steps"]) == (0, 7)
    assert rows(tmp_path) == []
    assert not (tmp_path / "best.pt").exists()
    tensors(tmp_path / "last.pt")


def test_the_best_is_saved_at_once_and_the_rest_every_few_epochs(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=4, save_every=2)
    saved: list[tuple[bool, int]] = []

    def stop() -> bool:
        saved.append(((tmp_path / "best.pt").exists(), len(rows(tmp_path))))
        return False

    fit(config, DATA, out=tmp_path, should_stop=stop)
    assert saved == [(False, 0)] * 13 + [(True, 0)] * 13 + [(True, 2)] * 26
    assert len(rows(tmp_path)) == 4


def test_resuming_puts_the_files_right_at_once(tmp_path: Path) -> None:
    fit(CONFIG, DATA, out=tmp_path, should_stop=stop_after(20))
    right = {name: tensors(tmp_path / name) for name in ("best.pt", "last.pt")}
    table = rows(tmp_path)
    for name in (*right, "metrics.csv"):
        (tmp_path / name).write_text("from the time between the last save and a kill")

    def stop() -> bool:
        for name, parameters in right.items():
            assert_same_tensors(tensors(tmp_path / name), parameters)
        assert rows(tmp_path) == table
        return True

    assert resume(tmp_path, DATA, should_stop=stop).interrupted


def test_resuming_a_finished_run_for_longer(tmp_path: Path) -> None:
    config = replace(CONFIG, lr_schedule="constant", lr_decay=0.9)
    fit(config, DATA, out=tmp_path / "run")
    longer = resume(tmp_path / "run", DATA, epochs=5)
    assert len(longer.history) == 5
    fit(replace(config, epochs=5), DATA, out=tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(UserError, match="epochs must be at least the 5 already done, got 4"):
        resume(tmp_path / "run", DATA, epochs=4)


def test_a_run_from_a_machine_with_a_gpu_goes_on_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = replace(CONFIG, engine="auto")
    fit(config, DATA, out=tmp_path / "whole")
    fit(config, DATA, out=tmp_path / "run", should_stop=stop_after(5))
    edit_json(tmp_path / "run" / "config.json", device="cuda:0")
    with pytest.raises(UserError, match="device cuda:0 is not there: PyTorch sees no GPU"):
        resume(tmp_path / "run", DATA)
    run = resume(tmp_path / "run", DATA, device="cpu")
    assert run.config.engine in ("blocked", "reference")
    assert "the fastest that runs here" in run.summary["engine_reason"]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(CONFIG, DATA, out=run, should_stop=stop_after(20))
    with pytest.raises(UserError, match=r"cosine .* laid out for 3 epochs"):
        resume(run, DATA, epochs=5)
    with pytest.raises(UserError, match=r"other data \(tiny0:\w+\) than the present \(tiny1:"):
        resume(run, tiny_data(seed=1))
    changed = replace(DATA.val, labels=DATA.val.labels.flip(0))
    with pytest.raises(UserError, match="other data"):
        resume(run, replace(DATA, val=changed))
    with pytest.raises(UserError, match="does not exist; pass the folder of a run"):
        resume(tmp_path / "nothing", DATA)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not the folder of a run"):
        resume(tmp_path / "empty", DATA)
    config = (run / "config.json").read_bytes()
    for changed, words in (
        ({"hidden": [17]}, r"parameters of 0.weight must be of shape \(17, 12\), not of shape"),
        ({"batch_size": 16}, "7 steps of 6 are done"),
        ({"batch_size": 4}, "7 steps of 23 are done, on 56 rows"),
    ):
        (run / "config.json").write_bytes(config)
        edit_json(run / "config.json", **changed)
        with pytest.raises(UserError, match=rf"its configuration: {words}"):
            resume(run, DATA)


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    fit(CONFIG, DATA, out=tmp_path, should_stop=stop_after(0))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="is there already and is not an empty folder"):
        fit(CONFIG, DATA, out=tmp_path)
    with pytest.raises(UserError, match="is there already and is not an empty folder"):
        fit(CONFIG, DATA, out=tmp_path / "config.json")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("engine", ENGINES)
def test_a_diverging_run_says_where_and_keeps_the_best(engine: str, tmp_path: Path) -> None:
    config = replace(CONFIG, engine=engine, lr=0.05, lr_schedule="constant", epochs=60)
    config = replace(config, lr_decay=30.0, save_every=50)  # fine at first, hopeless later
    with pytest.raises(DivergedError) as info:
        fit(config, DATA, out=tmp_path)
    text = str(info.value)
    assert f"in epoch {info.value.epoch} at step {info.value.step} of 12" in text
    assert "\n" not in text
    assert "try a smaller lr; the best parameters so far are in" in text
    assert info.value.epoch > 1
    assert len(rows(tmp_path)) == info.value.epoch - 1
    assert all(tensor.isfinite().all() for tensor in tensors(tmp_path / "best.pt").values())
    assert all(tensor.isfinite().all() for tensor in tensors(tmp_path / "last.pt").values())
    with pytest.raises(DivergedError) as again:
        resume(tmp_path, DATA)
    assert str(again.value) == text


def test_a_full_disk_is_told_and_what_was_saved_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fastmlp.utils.files as files

    os_fsync, calls = files.os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        os_fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr("fastmlp.utils.files.os.fsync", fsync)
        with pytest.raises(UserError, match=r"The disk is full while writing .*\.pt; free some"):
            fit(CONFIG, DATA, out=tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.tmp"))
    fit(CONFIG, DATA, out=tmp_path / "whole")
    resume(tmp_path / "run", DATA)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_threads_are_those_of_the_run_only_while_it_runs(threads: Any) -> None:
    threads(2)
    seen: list[int] = []

    def stop() -> bool:
        seen.append(torch.get_num_threads())
        return False

    run: RunResult = fit(replace(CONFIG, threads=1), DATA, should_stop=stop)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
    assert run.summary["threads"] == 1
    assert math.isfinite(run.summary["images_per_s"])
