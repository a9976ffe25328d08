"""The benchmarks' peers do the steps they are timed on: here on CPU tensors, a few of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.marks import needs_native

from fastmlp.data.transforms import make_normalization
from fastmlp.engines.graph import GraphEngine
from fastmlp.engines.reference import train_epoch_ref

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import contenders
import display
import epoch_time
import epoch_time_cuda
import epoch_turns
import machine
import op_time_cuda
import peers_cuda
import tables
from contenders import OURS, Task, Worker
from epoch_turns import check_same, prepare
from timing import Reading, Timing, Watch

pytestmark = needs_native

TASK = Task(batch=4, hidden=7, models=2, images=512)
NAMES = [*peers_cuda.CUDA_PEERS, f"{OURS}graph", f"{OURS}eager"]


@pytest.fixture(autouse=True)
def _small(monkeypatch, threads):
    threads(1)
    monkeypatch.setattr(contenders, "INPUTS", 24)
    monkeypatch.setattr(contenders, "LR", 0.1)
    monkeypatch.setattr(peers_cuda.CompiledModule, "OPTIONS", {"backend": "eager"})


def worker(name: str) -> Worker:
    if "JAX" in name:
        pytest.importorskip("jax")
    return Worker(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [3 * 4, 53 * 4, 512])
def test_every_contender_on_a_gpu_does_the_same_steps(name, images):
    """Fewer steps than the graph by hand has, some more, and many."""
    made, part = worker(name), contenders.random_part(TASK.images)
    made.make(TASK)
    for turn in range(2):
        made.epoch(turn, images)
    for model, mine in enumerate(made.parameters()):
        theirs = TASK.start(model)
        for turn in range(2):
            train_epoch_ref(
                *(list(theirs.values()), part.images, part.labels),
                *(contenders.orders_of(TASK, turn)[model][:images], TASK.batch, contenders.LR),
                normalize=make_normalization("unit", part.images).apply,
            )
        for key, tensor in theirs.items():
            torch.testing.assert_close(mine[key], tensor.detach(), rtol=1e-4, atol=1e-5)
    assert model == 1


def test_a_contender_with_other_steps_is_found(monkeypatch):
    truth = prepare(worker(f"{OURS}reference"), TASK)
    check_same("eager", prepare(worker(f"{OURS}eager"), TASK), truth, TASK)
    monkeypatch.setattr(contenders, "LR", 0.11)
    with pytest.raises(AssertionError, match=r"eager: \d.* is .* off"):
        check_same("eager", prepare(worker(f"{OURS}eager"), TASK), truth, TASK)


def test_a_whole_run(monkeypatch, tmp_path, capsys):
    """All but the processes and the GPU: an engine that fails is named, the rest is kept."""

    class InProcess(Worker):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def make(self, task):
            if self.name == f"{OURS}eager":
                raise contenders.ContenderError("eager: no\nmore")
            super().make(task)

        def epoch(self, turn, images=None):
            if turn == 4 and "compile" in self.name:
                raise contenders.ContenderError("no more")
            return super().epoch(turn, images)

    names = [name for name in NAMES if "JAX" not in name]
    monkeypatch.setattr(epoch_time_cuda, "Contender", InProcess)
    monkeypatch.setattr(epoch_time_cuda, "available", lambda device: names)
    monkeypatch.setattr(epoch_time_cuda, "TURN_SECONDS", 0.01)
    out = tmp_path / "epoch_time.cuda.json"
    with pytest.raises(SystemExit, match="fastmlp eager"):
        epoch_time_cuda.run("cpu", 2, out, 1.0, 2, [(4, 7, 1), (8, 7, 2)], images=603)
    results = json.loads(out.read_text())
    first, second = results["rows"]
    compiled = "torch.compile reduce-overhead"
    assert set(first["step"]) == {*names} - {f"{OURS}eager", compiled}
    assert set(second["step"]) == {f"{OURS}graph", "whole step by hand, 50 in a CUDA graph"}
    assert first["dropped"] == {f"{OURS}eager": "eager: no", compiled: "no more"}
    assert first["steps_a_turn"][f"{OURS}graph"] <= 150
    assert all(t["median_us"] > 0 and t["samples"] >= 2 for t in first["step"].values())
    assert (results["course_run"]["epochs"], results["course_run"]["steps"]) == (2, 150)
    assert "us a step" in capsys.readouterr().out


def test_each_way_to_multiply_float32_is_timed_but_is_no_peer(monkeypatch):
    monkeypatch.setattr(op_time_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(op_time_cuda, "ring", lambda make: [make()])
    for case in op_time_cuda.linear_cases((5, 9, 4), "float32"):
        assert set(op_time_cuda.WAYS) < set(case.contenders)
        want = op_time_cuda.tensors_of(case.contenders["eager"](*case.inputs[0]))
        for name in op_time_cuda.WAYS:
            got = op_time_cuda.tensors_of(case.contenders[name](*case.inputs[0]))
            torch.testing.assert_close(got, want)
        microseconds = [3.0, 2.0, 1.0, 0.5, *[6.0] * (len(case.contenders) - 4)]
        timings = [Timing(t, t, t, 1) for t in microseconds]
        times = {n: {"gpu": t, "host": t} for n, t in zip(case.contenders, timings, strict=True)}
        row = op_time_cuda.row_of(case, times, 1e12)
        assert row["ratio_gpu"] == row["ratio_host"] == 2.0
        words = op_time_cuda.times_of_ours(row)
        assert words == "3.0 us (by FMA 2.0, by three TF32 products 1.0, in TF32 0.5)"
    for shape, dtype in (((5, 9, 4), "bfloat16"), ((257, 9, 4), "float32")):
        for case in op_time_cuda.linear_cases(shape, dtype):
            assert not set(op_time_cuda.WAYS) & set(case.contenders)


def test_engines_of_a_gpu_are_timed_there(monkeypatch):
    monkeypatch.setattr("fastmlp.ops._load.NATIVE_DEVICES", ("cpu", "cuda"))
    names = contenders.available("cuda")
    assert f"{OURS}graph" in names
    assert f"{OURS}reference" not in names
    assert "the course's loop" in names
    assert f"{OURS}graph" not in contenders.available("cpu")
    assert GraphEngine.unsupported_reason(torch.device("cuda")) is None


def copy_results(monkeypatch, tmp_path) -> None:
    for path in machine.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(machine, "RESULTS", tmp_path)


def test_the_table_of_a_gpu_is_there_once_it_was_measured(monkeypatch, tmp_path):
    copy_results(monkeypatch, tmp_path)
    for path in tmp_path.glob("*.cuda.json"):
        path.unlink()
    page = (tables.ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    without = tables.filled(page, tables.make_tables())
    assert "<!-- gpu table -->\n<!-- end -->" in without
    step = {"fastmlp graph": {"median_us": 30.04}, "a peer": {"median_us": 300.0}}
    rows = [
        {"batch": 8, "hidden": 256, "models": 1, "step": step},
        {"batch": 16, "hidden": 64, "models": 32, "step": {"a peer": {"median_us": 50.0}}},
    ]
    head = {"device": "GPU", "driver": "1", "cuda": "2", "torch": "3", "time": "", "commit": ""}
    course = {"seconds": 9.99, "epochs": 200, "engine": "graph"}
    results = {"provenance": head, "rows": rows, "course_run": course}
    (tmp_path / "epoch_time.cuda.json").write_text(json.dumps(results))
    filled = tables.filled(without, tables.make_tables())
    assert "| **fastmlp graph** | 30.0 |  |\n| a peer | 300.0 | 50.0 |" in filled
    assert "| batch 8, hidden 256 | batch 16, hidden 64, 32 models |" in filled
    assert "takes 10.0 s with the engine `graph`" in filled
    assert tables.filled(filled, tables.make_tables()) == filled
    (tmp_path / "epoch_time.cuda.json").unlink()
    assert tables.filled(filled, tables.make_tables()) == without


def test_every_make_has_its_place_in_a_table(monkeypatch, tmp_path):
    copy_results(monkeypatch, tmp_path)
    for path in tmp_path.glob("*.json"):
        if ".amd." not in path.name:
            path.unlink()
    alone = tables.make_tables()
    assert "**Intel**: not measured yet." in alone["epochs"]
    assert "| *Intel: not measured yet* | | | | |" in alone["epoch"]
    results = json.loads((tmp_path / "epoch_time.amd.json").read_text())
    processor = {"l1d_kib": 48, "l2_kib": 2048}
    results["provenance"] |= {"device": "Xeon", "cpu_kernels": "avx2", "processor": processor}
    results["rows"][0]["disturbed"] = ["something"]
    (tmp_path / "epoch_time.intel.json").write_text(json.dumps(results))
    both = tables.make_tables()
    assert both["epochs"].startswith(alone["epochs"].split("**Intel**")[0])
    assert "**Intel**: Xeon, 2 threads, avx2 kernels, L1 48 KiB, L2 2048 KiB, " in both["epochs"]
    assert "† measured while the machine was busy" in both["epochs"]
    intel = both["epoch"].split("| *Xeon, 2 threads, avx2* |")[1]
    assert intel.count(" †") == len(tables.README_NAMES)
    assert intel.endswith("\n† measured while the machine was busy with something else.")
    assert list(machine.measured("epoch_time")) == ["amd", "intel"]


def reading(**changes: float) -> Reading:
    return replace(Reading(1e-3, 2.0, 0.0, 0.0, 0.0), **changes)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ({}, None),
        ({"taken": 0.05, "stolen": 0.01, "calibration": 1.1e-3}, None),
        ({"calibration": 1.5e-3}, "calibration 1.5 times slower"),
        ({"switches_per_second": 200.0}, "200 involuntary context switches"),
        ({"stolen": 0.5}, "the hypervisor took 0.05 of a core"),
        ({"taken": 10.0}, "other processes took 1.00 of a core"),
    ],
)
def test_a_disturbed_machine_is_noticed(monkeypatch, after, reason):
    monkeypatch.setattr("os.cpu_count", lambda: torch.get_num_threads())
    monkeypatch.setattr(Watch, "read", lambda self: reading())
    reasons = Watch().compare(reading(), reading(clock=10.0, **after), 1e-3)
    assert [reason] == [each[: len(reason)] for each in reasons] if reason else reasons == []


def test_a_disturbed_row_is_measured_again_and_marked_if_it_still_was(monkeypatch):
    quiet, slow = reading(), reading(calibration=2e-3)
    for readings, calls, marked in (
        ([quiet, quiet, quiet], 1, False),
        ([quiet, quiet, slow, quiet, quiet], 2, True),  # the second begins where the first ended
        ([quiet, quiet, slow, slow], 2, True),
    ):
        left, made, told = list(readings), [], []
        monkeypatch.setattr(Watch, "read", lambda self, left=left: left.pop(0))
        row = Watch().row(lambda made=made: {"n": made.append(1)}, tell=told.append)
        assert (len(made), "disturbed" in row) == (calls, marked)
        assert bool(told) == marked
    left = [quiet, quiet, slow]
    monkeypatch.setattr(Watch, "read", lambda self: left.pop(0))
    row = Watch().row(lambda: {"n": 1}, again=lambda: False, tell=told.append)
    assert row == {"n": 1, "disturbed": ["calibration 2.0 times slower than the quickest"]}


def test_contenders_on_a_cpu_are_timed_in_turn_and_told_as_they_end():
    names = [f"{OURS}eager", "hand-written loop in torch"]
    workers = [Worker(name) for name in names]
    ready, dropped = epoch_turns.prepare_all(workers, TASK)
    assert (len(ready), dropped) == (2, {})
    turns, done = [], []
    times = epoch_turns.time_epochs(
        workers, TASK, 2, 0.01, on_turn=turns.append, on_done=lambda n, t: done.append((n, t))
    )
    assert turns == 3 * names
    assert done == list(times.items())
    assert all(timing.median_us > 0 and timing.samples == 2 for timing in times.values())


def test_a_plan_keeps_to_its_time():
    tasks = [("batch", Task(batch)) for batch in (4, 8, 32, 128)]
    plan = epoch_time.Plan(tasks, epoch_time.QUICK, rounds=2, seconds=110.0)
    turn = plan.turn_seconds(110.0, 4)
    assert 4 * plan.task_seconds(turn) == pytest.approx(110.0)
    assert plan.turn_seconds(1e6, 4) == epoch_time.TURN_SECONDS[1]
    assert plan.turn_seconds(-5.0, 4) == epoch_time.TURN_SECONDS[0]


def test_the_time_left_follows_the_pace(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with display.Display(100.0) as shown:
        assert shown.seconds_left() == 100.0
        now[0] = 30.0
        shown.advance(30.0)
        assert shown.seconds_left() == 70.0
        now[0] = 150.0  # as expected work of 30 s has taken 120 s
        shown.advance(30.0)
        assert shown.seconds_left() == 40.0 * (60 + 150) / (60 + 60)
        shown.line("a row [of] results")
        shown.extend(10.0)
        shown.left()
    out = capsys.readouterr().out
    assert out == "a row [of] results\n  about 88 s left\n"


def test_a_benchmark_shows_its_rows_and_stops_when_its_time_is_up(monkeypatch, capsys):
    class InProcess(Worker):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(epoch_time, "Contender", InProcess)
    monkeypatch.setattr(epoch_time, "TURN_SECONDS", (0.001, 0.01))
    monkeypatch.setattr(Watch, "read", lambda self: reading())
    tasks = [("batch", Task(batch, 7, 1, 512)) for batch in (4, 8)]
    names = [f"{OURS}eager", epoch_time.MODULE]
    with display.Display(1.0) as shown:
        rows = epoch_time.Benchmark(epoch_time.Plan(tasks, names, 2), shown, 1.0).run()
        hurried = epoch_time.Plan(tasks, names, 1, seconds=1e-9)
        assert len(epoch_time.Benchmark(hurried, shown, 1.0).run()) == 1
    assert [(row["axis"], row["batch"], row["steps"]) for row in rows] == [
        ("batch", 4, 128),
        ("batch", 8, 64),
    ]
    assert all(list(row["epoch"]) == names and row["dropped"] == {} for row in rows)
    out = capsys.readouterr().out
    assert [out.count(f"  {name} ") for name in names] == [3, 3]
    assert "batch 8 is left out: the time is up" in out


def test_missing_peers_are_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(contenders, "installed", lambda package: package == "torch")
    assert contenders.missing() == {"JAX jit(scan)": "jax", "scikit-learn": "scikit-learn"}
    assert not {"JAX jit(scan)", "scikit-learn"} & set(contenders.available())
    assert epoch_time.MODULE in contenders.available()


def test_a_process_that_fails_or_dies_or_hangs_says_so(monkeypatch):
    with contenders.Contender(f"{OURS}reference") as contender:
        with pytest.raises(contenders.ContenderError, match="reference: AssertionError"):
            contender.epoch(0)
        contender.make(Task(images=64))
        assert contender.epoch(0) > 0  # it goes on after an error
        monkeypatch.setattr(contenders, "PATIENCE_SECONDS", 0)
        with pytest.raises(contenders.ContenderError, match="took more than 0 s"):
            contender.epoch(1)
        contender._process.join()
        with pytest.raises(contenders.ContenderError, match="has died"):
            contender.epoch(2)
