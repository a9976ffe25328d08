"""The command ``reproduce``: does the course's experiments again and writes a report of them.

python -m fastmlp.reproduce            about ten minutes on two cores
python -m fastmlp.reproduce --quick    a minute or two, with fewer epochs and seeds

A folder holds ``report.html`` (one file with everything in it), ``report.md`` with ``pictures``,
``results.json`` and, in ``parts``, what is done, from which the same command goes on.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmlp import __version__
from fastmlp.cli.options import add_data_arguments
from fastmlp.cli.parser import ArgumentParser
from fastmlp.data.dataset import Dataset, load_dataset
from fastmlp.data.splits import DataSplits, split_dataset
from fastmlp.engines.registry import choose_engine, resolve_device
from fastmlp.report.cache import StudyCache, StudyPart
from fastmlp.report.experiments import FULL, QUICK, Outcome, Study, studies
from fastmlp.report.html import Document, Points, to_html, to_markdown
from fastmlp.report.layer_checks import check_layers
from fastmlp.report.progress import ReportProgress
from fastmlp.report.results import Material, make_results
from fastmlp.report.sections import make_report
from fastmlp.training import api as fitting
from fastmlp.training.config import TrainConfig
from fastmlp.utils.environment import device_name, git_commit
from fastmlp.utils.errors import EXIT_INTERRUPTED, EXIT_USAGE, UserError
from fastmlp.utils.files import write_text
from fastmlp.utils.signals import stop_on_signals

OUT = "runs/reproduce"
MARKER = ".report"
"""An empty file, by which the folder of a report is known."""


class _Stopped(Exception):
    """By the user."""


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code, raises :class:`UserError` for a user's mistake."""
    options = _build_parser().parse_args(argv)
    folder = _checked_folder(options.out)
    budget = QUICK if options.quick else FULL
    if options.seeds is not None:
        budget = replace(budget, **dict.fromkeys(_SEEDS, options.seeds))
    common = {
        "split": options.split,
        "test_set": options.test_set,
        "device": options.device,
        "threads": options.threads,
    }
    TrainConfig(**common)  # refuses what cannot be before anything is downloaded
    device = resolve_device(options.device)
    dataset = load_dataset(options.dataset, options.data_dir, options.data_url)
    data = split_dataset(dataset, options.split, options.test_set)
    plan = studies({**common, "dataset": dataset.name, "device": str(device)}, budget)
    parts = StudyCache(folder / "parts")
    with stop_on_signals() as stop:
        try:
            _prepare(folder)
            _reproduce(plan, dataset, data, parts, folder, options.quick, stop)
        except _Stopped:
            print(
                f"Stopped; what is finished is kept in {parts.folder}. The same command goes on "
                "from there.",
                flush=True,
            )
            return EXIT_INTERRUPTED
    return 0


_SEEDS = ("sweep_seeds", "final_seeds", "ablation_seeds", "network_seeds")


def _reproduce(
    plan: list[Study],
    dataset: Dataset,
    data: DataSplits,
    parts: StudyCache,
    folder: Path,
    quick: bool,
    stop: Callable[[], bool],
) -> None:
    """Trains what is not in ``parts`` yet, and writes the report."""
    begin = time.perf_counter()
    config = next(iter(plan[0].configs.values()))
    device = torch.device(config.device)
    checks = check_layers(device)
    with ReportProgress(sys.stderr.isatty()) as progress:
        done = _train_all(plan, data, parts, progress, stop)
        material = Material(
            data,
            plan,
            {name: _outcomes(found) for name, found in done.items()},
            checks,
            quick,
            {name: sum(part.seconds for part in found) for name, found in done.items()},
            _facts(device, config.threads or torch.get_num_threads()),
        )
        progress.say("drawing")
        document = _write(folder, material, dataset, _best_parameters(material, done), stop)
    short = next(block for block in document.blocks if isinstance(block, Points))
    print()
    for item in short.items:
        print(f"- {item if isinstance(item, str) else f'{item[0].text}: {item[1]}'}")
    seconds = time.perf_counter() - begin
    print(f"\nThe report is {folder / 'report.html'} ({seconds:.0f} s in this sitting)", flush=True)


def _train_all(
    plan: list[Study],
    data: DataSplits,
    parts: StudyCache,
    progress: ReportProgress,
    stop: Callable[[], bool],
) -> dict[str, list[StudyPart]]:
    """The parts of each study: those kept, and the others trained now; raises :class:`_Stopped`."""
    keys = {(s.name, seed): _key(s, data, seed) for s in plan for seed in range(s.seeds)}
    kept = {place: parts.load(*place, key) for place, key in keys.items()}
    costs = {(s.name, seed): _cost(s) for s in plan for seed in range(s.seeds)}
    progress.start(costs, {place for place, part in kept.items() if part is not None})
    done: dict[str, list[StudyPart]] = {study.name: [] for study in plan}
    for study in plan:
        missing = [s for s in range(study.seeds) if kept[study.name, s] is None]
        # a GPU takes all seeds at once; a processor is busy with one, and that can be kept sooner
        together = max(1, len(missing)) if _on_gpu(study) else 1
        for first in range(0, len(missing), together):
            seeds = missing[first : first + together]
            trained = _train(study, seeds, data, progress, stop)
            for seed, part in trained.items():
                kept[study.name, seed] = part
                parts.save(study.name, seed, keys[study.name, seed], part)
        for seed in range(study.seeds):
            found = kept[study.name, seed]
            assert found is not None
            done[study.name].append(found)
    return done


def _train(
    study: Study,
    seeds: list[int],
    data: DataSplits,
    progress: ReportProgress,
    stop: Callable[[], bool],
) -> dict[int, StudyPart]:
    """Trains a study's networks with these seeds side by side; raises :class:`_Stopped`."""
    many = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    progress.begin([(study.name, seed) for seed in seeds], f"{study.title}, {many}")
    begin = time.perf_counter()
    configs = [config for seed in seeds for config in study.with_seed(seed)]
    runs = fitting.fit_many(configs, data, should_stop=stop, on_epoch=progress.epoch)
    if stop():
        raise _Stopped
    progress.end()
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
    """What decides the results of a part: it is used again where all of it is the same."""
    configs = {name: config.essentials() for name, config in study.configs.items()}
    kind = "gpu" if _on_gpu(study) else "cpu"
    versions = [__version__, torch.__version__]
    return {"data": data.fingerprint, "seed": seed, "on": [kind, *versions], "configs": configs}


def _cost(study: Study) -> float:
    """About how long a seed takes, in seconds on two cores; images just seen cost less."""
    cost = 0.0
    for config in study.configs.values():
        width = sum(config.hidden) / 256
        cost += 0.05 * width if config.loader == "sliding" else 0.04 + 0.3 * width
    return study.epochs * cost


def _outcomes(found: list[StudyPart]) -> dict[str, list[Outcome]]:
    return {name: [part.outcomes[name] for part in found] for name in found[0].outcomes}


def _best_parameters(
    material: Material, done: dict[str, list[StudyPart]]
) -> dict[str, Tensor] | None:
    best = material.best_outcome("network", "default")
    return None if best is None else done["network"][best.seed].parameters


def _write(
    folder: Path,
    material: Material,
    dataset: Dataset,
    parameters: dict[str, Tensor] | None,
    stop: Callable[[], bool],
) -> Document:
    """Draws the pictures and writes the report's files; returns the document."""
    from fastmlp.report.figures import drawings  # matplotlib takes a second to import

    pictures = {}
    for name, draw in drawings(material, dataset, parameters).items():
        if stop():
            raise _Stopped
        pictures[name] = folder / "pictures" / f"{name}.png"
        draw(pictures[name])
    document = make_report(material, pictures)
    write_text(folder / "results.json", _json(make_results(material)))
    write_text(folder / "report.md", to_markdown(document, folder))
    write_text(folder / "report.html", to_html(document))
    return document


def _json(values: dict[str, Any]) -> str:
    """Indented, but every list of numbers on one line."""
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


def _checked_folder(text: str) -> Path:
    """The folder for the report; raises :class:`UserError` where something else is in it."""
    if not text:
        raise UserError("--out must be a folder, got an empty name", EXIT_USAGE)
    folder = Path(text).expanduser()
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (folder / MARKER).exists():
        raise UserError(
            f"{folder} is there already and holds no report; pass another --out", EXIT_USAGE
        )
    return folder


def _prepare(folder: Path) -> None:
    """Makes the folder known as a report's, and clears what a killed program left half-written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _seed_count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text):
        raise UserError(f"--seeds must be a whole number from 1 to 999, got {text}", EXIT_USAGE)
    return int(text)


def _build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="fastmlp reproduce",
        description="Does the course's experiments again and writes a report of them.",
    )
    add_data_arguments(parser.add_argument_group("data"))
    add = parser.add_argument_group("report").add_argument
    add("--quick", action="store_true", help="fewer epochs and seeds: a minute or two%(default).0s")
    add("--out", metavar="DIR", default=OUT, help="folder for it: new, empty or of a report")
    add(
        "--seeds",
        type=_seed_count,
        metavar="N",
        help="seeds of every part; if not given, from 2 to 5, fewer with --quick%(default).0s",
    )
    add("--device", metavar="auto|cpu|cuda[:N]", default=TrainConfig.device, help="where to run")
    add("--threads", type=int, metavar="N", default=0, help="CPU threads; 0 leaves it to PyTorch")
    return parser
