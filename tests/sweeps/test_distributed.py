"""Processes that share a sweep come to what one process comes to.

As a program, this file is what torchrun starts for these tests: one start serves all of them.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import python_environment
from support.tiny import stop_after
from support.tiny_sweep import BASE, DATA, MIXED, assert_same_results, table

from fastmlp.cli.sweep import main
from fastmlp.sweeps import sweep as sweeping
from fastmlp.sweeps.distributed import ProcessGroup
from fastmlp.sweeps.sweep import sweep

ALTERNATING: dict[str, list[Any]] = {"lr": [0.05, 1e25, 0.01, 1e24]}
"""With two processes, all that diverge are the second one's."""
COMMAND = ["--hidden=8,4", "--epochs=2", "--threads=1", "--device=cpu", "--seeds=2"]
PROGRAM = Path(__file__)


def test_alone() -> None:
    alone = ProcessGroup.from_environment()
    assert alone == ProcessGroup(0, 1, 0)
    assert alone.is_first
    assert alone.share([1, 2, 3]) == [1, 2, 3]
    assert alone.gather([1, 2]) == [1, 2]
    assert alone.first_then_others(lambda: 5) == 5
    assert ProcessGroup.join() == alone
    assert not torch.distributed.is_initialized()


def test_as_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert ProcessGroup.from_environment() == ProcessGroup(5, 8, 1)
    assert not ProcessGroup(5, 8, 1).is_first


@pytest.mark.parametrize(("size", "count"), [(1, 5), (2, 5), (3, 7), (4, 2)])
def test_every_item_is_one_processs(size: int, count: int) -> None:
    shares = [ProcessGroup(rank, size, 0).share(range(count)) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = replace(BASE, device="auto")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    devices = [ProcessGroup(rank, 4, rank % 3).placed(auto).device for rank in range(4)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:0"]
    assert ProcessGroup(1, 4, 1).placed(BASE) == BASE  # asked for by name
    assert ProcessGroup().placed(auto) == auto
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert ProcessGroup(1, 4, 1).placed(auto) == auto


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.plotting.sweeps.sweep_picture", lambda *args: None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What two processes left, and what they wrote on the terminal."""
    folder = tmp_path_factory.mktemp("shared")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(PROGRAM)],
        cwd=folder,
        env=python_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize("halving", [False, True])
def test_two_processes_are_as_one(halving: bool, shared: tuple[Path, str], tmp_path: Path) -> None:
    folder = shared[0] / ("halving" if halving else "all")
    sweep(BASE, MIXED, seeds=2, successive_halving=halving, data=DATA, out=tmp_path)
    assert_same_results(folder, tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        *("results.csv", "epochs.csv", "best.toml", ".lock", "resume-0.pt", "resume-1.pt"),
    }
    # And one process finds all that the two have done.
    before = (folder / "results.csv").read_text()  # seconds of training among it
    sweep(BASE, MIXED, seeds=2, successive_halving=halving, data=DATA, out=folder)
    assert (folder / "results.csv").read_text() == before


def test_a_process_whose_runs_all_diverge_waits_for_the_other(
    shared: tuple[Path, str], tmp_path: Path
) -> None:
    sweep(BASE, ALTERNATING, successive_halving=True, data=DATA, out=tmp_path)
    assert_same_results(shared[0] / "alternating", tmp_path)
    rows = table(tmp_path / "results.csv")
    assert [row["status"] for row in rows].count("diverged") == 2
    assert [row["status"] for row in rows].count("finished") == 1


def test_a_process_without_runs(shared: tuple[Path, str], tmp_path: Path) -> None:
    sweep(BASE, {}, successive_halving=True, data=DATA, out=tmp_path)
    assert_same_results(shared[0] / "single", tmp_path)


@pytest.mark.parametrize("halving", [False, True])
def test_one_process_goes_on_where_two_were_stopped(
    halving: bool, shared: tuple[Path, str], tmp_path: Path
) -> None:
    """Only the second one was told to stop."""
    folder = shared[0] / ("stopped-halving" if halving else "stopped")
    statuses = {row["status"] for row in table(folder / "results.csv")}
    assert "stopped" in statuses
    assert ("finished" in statuses) != halving  # they wait for each other where they compare
    for out in (folder, tmp_path):
        sweep(BASE, MIXED, successive_halving=halving, data=DATA, out=out)
    assert_same_results(folder, tmp_path)
    # What the second one left is now behind, and is not taken up once more.
    before = (folder / "results.csv").read_text()  # seconds of training among it
    sweep(BASE, MIXED, successive_halving=halving, data=DATA, out=folder)
    assert (folder / "results.csv").read_text() == before


def test_all_get_the_whole_result_and_the_first_alone_speaks(shared: tuple[Path, str]) -> None:
    folder, out = shared
    results = [(folder / f"seen-by-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert results[0] == results[1]
    assert [line.split(",")[0] for line in results[0]] == ["14 runs", "14 runs"]
    assert (folder / "drawn-by-0").exists()
    assert not (folder / "drawn-by-1").exists()
    assert out.count("epoch 1/2  best in validation so far") == 1
    assert out.count("Best in validation: ") == 1
    assert out.count("Validation accuracy, best first") == 1
    assert out.count("Everything is in ") == 1


def test_without_a_name_they_still_share_one_folder(shared: tuple[Path, str]) -> None:
    """It is named by the time, which each process asks for itself."""
    (folder,) = (shared[0] / "runs").iterdir()
    assert folder.name == "sweep-0-o-clock"
    assert (folder / "resume-1.pt").exists()
    assert len(table(folder / "results.csv")) == 4


def program() -> None:
    """What each of the two processes does, in the folder that it was started in."""
    rank = ProcessGroup.from_environment().rank
    drawn = Path(f"drawn-by-{rank}")
    importlib.import_module("fastmlp.plotting.sweeps").sweep_picture = lambda *args: drawn.touch()  # type: ignore[attr-defined]
    placed = ProcessGroup.placed  # a place of its own, as with several GPUs
    ProcessGroup.placed = lambda self, config: replace(
        placed(self, config), save_every=1 + self.rank
    )  # type: ignore[method-assign]
    for halving, name in ((False, "all"), (True, "halving")):
        result = sweep(BASE, MIXED, seeds=2, successive_halving=halving, data=DATA, out=name)
        with open(f"seen-by-{rank}", "a") as file:
            print(f"{len(result.runs)} runs, best {result.best}", file=file)
    sweep(BASE, ALTERNATING, successive_halving=True, data=DATA, out="alternating")
    sweep(BASE, {}, successive_halving=True, data=DATA, out="single")
    for halving, name in ((False, "stopped"), (True, "stopped-halving")):
        stop = stop_after(6 if rank else 10**9)
        result = sweep(
            *(BASE, MIXED), successive_halving=halving, data=DATA, out=name, should_stop=stop
        )
        assert result.interrupted
    time.strftime = lambda form: f"{rank}-o-clock"  # type: ignore[assignment]
    sweeping.load_splits = lambda *_, **__: DATA
    sys.modules["fastmlp.cli.sweep"].REPORT_SECONDS = 0.0  # type: ignore[attr-defined]
    assert main(COMMAND) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    program()
