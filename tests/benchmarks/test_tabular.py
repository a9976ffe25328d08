"""The benchmark on tables of numbers: its peers take the same steps, and a run of it in short."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from support.marks import needs_native

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import contenders
import layer_tables
import tabular_peers
import tabular_time
from contenders import ContenderError
from tabular_peers import PEERS, TabularTask, TabularWorker
from timing import Reading, Watch

pytestmark = needs_native

ADAM = TabularTask(90, (6, 9, 5, 3), 16)
SGD = TabularTask(90, (12, 7, 3), 16, "sgd", pixels=True)
NEEDS = {"scikit-learn": "sklearn", "JAX jit(scan), optax": "optax"}
OURS = [tabular_time.NATIVE, tabular_time.BLOCKED]


@pytest.fixture(autouse=True)
def _small(monkeypatch, threads):
    threads(1)
    for module in (contenders, tabular_peers):
        monkeypatch.setattr(module, "LR", 0.01)
    monkeypatch.setattr(tabular_peers.CompiledModule, "OPTIONS", {"backend": "eager"})
    monkeypatch.setattr(Watch, "read", lambda self: Reading(1e-3, 2.0, 0.0, 0.0, 0.0))


class InProcess(TabularWorker):
    def __init__(self, name, kind=TabularWorker):
        assert kind is TabularWorker
        super().__init__(name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def trained(name: str, task: TabularTask) -> dict[str, torch.Tensor]:
    worker = TabularWorker(name)
    worker.make(task)
    for turn in range(2):
        worker.epoch(turn)
    return worker.parameters()[0]


def plain(task: TabularTask) -> dict[str, torch.Tensor]:
    """Two epochs in float64, by torch.optim without fused kernels."""
    part, parameters = task.part(), {n: t.double() for n, t in task.start(0).items()}
    tensors = [t.requires_grad_() for t in parameters.values()]
    if task.optimizer == "adam":
        optimizer = torch.optim.Adam(tensors, lr=0.01)
    else:
        optimizer = torch.optim.SGD(tensors, lr=0.01, momentum=0.9, weight_decay=1e-3)
    x = part.images.double() / (255 if task.pixels else 1)
    for turn in range(2):
        for rows in torch.split(contenders.orders_of(task, turn)[0], task.batch):
            h = x[rows]
            for weight, bias in zip(tensors[:-2:2], tensors[1:-2:2], strict=True):
                h = torch.relu(h @ weight.t() + bias)
            loss = torch.nn.functional.cross_entropy(
                h @ tensors[-2].t() + tensors[-1], part.labels[rows]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: t.detach() for name, t in parameters.items()}


@pytest.mark.parametrize("name", [*OURS, *PEERS])
@pytest.mark.parametrize("task", [ADAM, SGD], ids=["adam", "momentum"])
def test_every_contender_takes_the_same_steps(name, task):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name == tabular_time.BLOCKED and task is ADAM:
        with pytest.raises(ContenderError, match=r"adam|SGD"):
            trained(name, task)
        return
    # scikit-learn decays no biases, and the last, smaller batch more
    tolerance = 2e-3 if (name, task) == ("scikit-learn", SGD) else 1e-4
    mine = trained(name, task)
    for key, tensor in plain(task).items():
        torch.testing.assert_close(mine[key].double(), tensor, rtol=tolerance, atol=tolerance)


def test_two_classes_are_another_network_in_scikit_learn():
    pytest.importorskip("sklearn")
    with pytest.raises(ContenderError, match="one output for two classes"):
        trained("scikit-learn", TabularTask(40, (5, 4, 2), 16))


def test_a_run_in_short_and_its_table(monkeypatch, capsys):
    """All but the processes; JAX is missing, which is told and no error."""
    monkeypatch.setattr(contenders, "installed", lambda package: "jax" not in package)
    monkeypatch.setattr(tabular_time, "Contender", InProcess)
    many = TabularTask(64, (6, 8, 3), 16, models=3)
    rows = tabular_time.run([ADAM, SGD], many, 1, 0.001)
    out = capsys.readouterr().out
    assert "JAX jit(scan), optax is left out: pip install jax" in out
    adam, sgd, last = rows
    peers = [name for name in PEERS if "JAX" not in name]
    assert list(adam["epoch"]) == [tabular_time.NATIVE, *peers]
    assert list(sgd["epoch"]) == [*OURS, *peers]
    assert adam["dropped"] == sgd["dropped"] == {}
    assert list(last["epoch"]) == ["1 model", "3 models"]
    assert last["throughput"] > 0
    results = json.loads(json.dumps({"rows": rows}, default=vars))
    results["rows"][0]["epoch"] = {"fastmlp native": {"median_us": 2e3}, "JAX": {"median_us": 5e3}}
    results["rows"][2] |= {"throughput": 1.94, "disturbed": ["busy"]}
    table = layer_tables.tabular_table(results).splitlines()
    columns = [cell.strip() for cell in table[0].split("|")[2:-1]]
    assert columns[:2] == ["**fastmlp native**", "**fastmlp blocked**"]
    assert [cell.strip() for cell in table[2].split("|")[2:-1]] == [
        {"**fastmlp native**": "2.0", "JAX": "5.0 (2.5x)"}.get(name, "") for name in columns
    ]
    assert "3 networks at once (64 rows, 6-8-3, batch 16, adam) get **1.94 †** times" in table[-3]


def test_other_steps_than_the_peers_end_the_run(monkeypatch):
    many = TabularTask(64, (6, 8, 3), 16, models=3)
    wrong = [ADAM]

    class Wrong(InProcess):
        def make(self, task):
            super().make(task)
            if self.name == tabular_time.NATIVE and task in wrong:
                self._made.states[0].tensors[0].mul_(1.5)

    monkeypatch.setattr(contenders, "installed", lambda package: package == "torch")
    monkeypatch.setattr(tabular_time, "Contender", Wrong)
    with pytest.raises(SystemExit, match="fastmlp native"):
        tabular_time.run([ADAM], many, 1, 0.001)
    wrong[0] = many
    with pytest.raises(AssertionError, match="weight differs alone and together"):
        tabular_time.run([ADAM], many, 1, 0.001)
