"""Run the experiments of the report, reuse those already cached, and write the results.

The folder of a report holds ``report.html`` (one file with everything in it), ``results.json`` and,
in ``parts``, the finished experiments, from which a stopped run resumes.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastmlp import __version__
from fastmlp.data.dataset import Dataset
from fastmlp.data.splits import DataSplits
from fastmlp.engines.registry import choose_engine
from fastmlp.report.cache import StudyCache, StudyPart
from fastmlp.report.experiments import Outcome, Study
from fastmlp.report.html import Point
from fastmlp.report.layer_checks import check_layers
from fastmlp.report.results import Material, make_results
from fastmlp.report.sections import in_short, make_report
from fastmlp.training import api as fitting
from fastmlp.training.run import layer_sizes
from fastmlp.utils.environment import device_name, git_commit
from fastmlp.utils.files import locked_folder, make_folder, remove_files, write_text

MARKER = ".report"
"""An empty file that marks the folder of a report."""


class Stopped(Exception):
    """The caller asked to stop; the finished experiments are in the cache."""


class ReportCallback(Protocol):
    """Receives how far the report is; a ``share`` of the whole cost is from 0 to 1."""

    def on_start(self, cached: int, parts: int, share: float) -> None:
        """Report that ``cached`` of the ``parts`` are finished already."""

    def on_epoch(self, part: str, epoch: int, epochs: int, share: float) -> None:
        """Report that the networks of ``part``, a title, have finished ``epoch`` of ``epochs``."""

    def on_drawing(self) -> None:
        """Report that all experiments are finished; pictures and files follow."""


@contextlib.contextmanager
def report_folder(folder: Path) -> Iterator[None]:
    """Hold the folder of a report, made and marked as one, without what killed runs left
    half-written; raise :class:`UserError` where another process holds it."""
    _mark(folder)
    with locked_folder(folder):
        remove_files(folder.rglob(".*.tmp"))
        yield


def _mark(folder: Path) -> None:
    make_folder(folder)
    (folder / MARKER).touch()


def run_report(
    plan: list[Study],
    dataset: Dataset,
    data: DataSplits,
    folder: Path,
    quick: bool,
    callback: ReportCallback,
    should_stop: Callable[[], bool],
) -> list[Point]:
    """Train what is not cached in ``folder`` yet, write the report, and return its main findings.

    Raises :class:`Stopped` once ``should_stop`` is true, OSError if ``folder`` is not writable and
    :class:`UserError` where another process uses it.
    """
    with report_folder(folder):
        config = next(iter(plan[0].configs.values()))
        device = torch.device(config.device)
        checks = check_layers(device)
        done = _train_all(plan, data, folder, callback, should_stop)
        material = Material(
            data,
            plan,
            {
                study.name: {
                    k: [part.outcomes[k] for part in done[study.name]] for k in study.configs
                }
                for study in plan
            },
            checks,
            quick,
            {name: sum(part.seconds for part in parts) for name, parts in done.items()},
            _facts(device, config.threads or torch.get_num_threads()),
        )
        callback.on_drawing()
        best = material.best_outcome("network", "default")
        parameters = None if best is None else done["network"][best.seed].parameters
        _write(folder, material, dataset, parameters, should_stop)
        return in_short(material)


def _train_all(
    plan: list[Study],
    data: DataSplits,
    folder: Path,
    callback: ReportCallback,
    should_stop: Callable[[], bool],
) -> dict[str, list[StudyPart]]:
    """Return the parts of each study in the order of their seeds, training those not cached."""
    cache = StudyCache(folder / "parts")
    keys, parts = {}, {}
    for study in plan:
        sizes = layer_sizes(next(iter(study.configs.values())), data)
        for seed in range(study.seeds):
            key = keys[study.name, seed] = _key(study, data, seed)
            part = cache.load(study, seed, key, sizes)
            if part is not None:
                parts[study.name, seed] = part
    costs = {study.name: _cost(study) for study in plan}
    total = sum(costs[name] for name, _ in keys)
    done = sum(costs[name] for name, _ in parts)
    callback.on_start(len(parts), len(keys), done / total)
    for study in plan:
        missing = [seed for seed in range(study.seeds) if (study.name, seed) not in parts]
        # a GPU takes all seeds at once; a processor is busy with one, and that is cached sooner
        together = max(1, len(missing)) if _on_gpu(study) else 1
        for first in range(0, len(missing), together):
            seeds = missing[first : first + together]
            cost = costs[study.name] * len(seeds)
            many = f"{study.title}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"

            def on_epoch(
                epoch: int, epochs: int, many: str = many, done: float = done, cost: float = cost
            ) -> None:
                callback.on_epoch(many, epoch, epochs, (done + cost * epoch / epochs) / total)

            for seed, part in _train(study, seeds, data, on_epoch, should_stop).items():
                parts[study.name, seed] = part
                _mark(folder)  # which may have been removed under way
                cache.save(study.name, seed, keys[study.name, seed], part)
            done += cost
    return {study.name: [parts[study.name, seed] for seed in range(study.seeds)] for study in plan}


def _train(
    study: Study,
    seeds: list[int],
    data: DataSplits,
    on_epoch: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> dict[int, StudyPart]:
    """Train the networks of a study with these seeds side by side."""
    begin = time.perf_counter()
    configs = [config for seed in seeds for config in study.with_seed(seed)]
    runs = fitting.fit_many(configs, data, should_stop=should_stop, on_epoch=on_epoch)
    if should_stop():
        raise Stopped
    seconds = round((time.perf_counter() - begin) / len(seeds), 3)
    parts = {}
    for index, seed in enumerate(seeds):
        own = runs[index * len(study.configs) : (index + 1) * len(study.configs)]
        outcomes = {name: Outcome.of(run) for name, run in zip(study.configs, own, strict=True)}
        keep = study.name == "network" and own[0].diverged is None
        parameters = own[0].best_parameters if keep else None
        parts[seed] = StudyPart(seconds, outcomes, parameters)
    return parts


def _on_gpu(study: Study) -> bool:
    return any(config.device != "cpu" for config in study.configs.values())


def _key(study: Study, data: DataSplits, seed: int) -> dict[str, Any]:
    """Return all that decides the results of a part, the key of the cache."""
    configs = {name: config.essentials() for name, config in study.configs.items()}
    kind = "gpu" if _on_gpu(study) else "cpu"
    versions = [__version__, torch.__version__]
    return {"data": data.fingerprint, "seed": seed, "on": [kind, *versions], "configs": configs}


def _cost(study: Study) -> float:
    """Estimate the seconds a seed takes on two cores; recently used images cost less."""
    cost = 0.0
    for config in study.configs.values():
        width = sum(config.hidden) / 256
        cost += 0.05 * width if config.loader == "sliding" else 0.04 + 0.3 * width
    return study.epochs * cost


def _write(
    folder: Path,
    material: Material,
    dataset: Dataset,
    parameters: dict[str, Tensor] | None,
    should_stop: Callable[[], bool],
) -> None:
    """Draw the pictures and write the files of the report."""
    from fastmlp.report.figures import drawings  # matplotlib takes a second to import

    with tempfile.TemporaryDirectory() as scratch:
        pictures = {}
        for name, draw in drawings(material, dataset, parameters).items():
            if should_stop():
                raise Stopped
            pictures[name] = Path(scratch) / f"{name}.png"
            draw(pictures[name])
        page = make_report(material, pictures)
    _mark(folder)
    write_text(folder / "results.json", _json(make_results(material)))
    write_text(folder / "report.html", page)


def _json(values: dict[str, Any]) -> str:
    """Indent everything but lists of numbers, which stay on one line."""
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda match: " ".join(match[0].split()), text) + "\n"


def _facts(device: torch.device, threads: int) -> dict[str, str]:
    return {
        "device": device_name(device),
        "threads": str(threads),
        "engine": choose_engine("auto", device)[0].name,
        "versions": f"fastmlp {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "commit": git_commit(Path(__file__).resolve().parents[2]) or "not a checkout",
        "date": time.strftime("%Y-%m-%d"),
    }
