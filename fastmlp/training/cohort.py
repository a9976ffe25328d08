"""Many runs side by side, an epoch at a time: what :func:`fastmlp.fit_many` and sweeps stand on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from fastmlp.data.splits import DataSplits
from fastmlp.engines.base import Engine
from fastmlp.engines.metrics import EpochMetrics, EvalMetrics
from fastmlp.engines.registry import EnginePool
from fastmlp.training.checkpoint import Checkpoint
from fastmlp.training.config import TrainConfig
from fastmlp.training.trainer import DivergedError, Training, train_epochs


class Cohort:
    """Runs on the same data. Each comes to what it comes to alone: to the last bit with engines
    that promise it, as ``blocked`` does on the CPU.

    ``states`` are where runs go on, None for one that begins. A run that diverges is left behind
    and its error kept. Raises :class:`UserError` as :class:`Training` does.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        data: DataSplits,
        states: Sequence[Checkpoint | None] | None = None,
    ) -> None:
        states = states or [None] * len(configs)
        self.data = data
        engines = EnginePool(data.train)
        self.trainings = [
            Training(config, data, state, engines)
            for config, state in zip(configs, states, strict=True)
        ]
        self.errors: dict[int, DivergedError] = {}
        self.goals = [config.epochs for config in configs]
        """How many epochs each run is to come to, of those it has; for the caller to lower."""

    @property
    def running(self) -> list[int]:
        """Numbers of the runs that have not come to their goal."""
        return [
            i
            for i, training in enumerate(self.trainings)
            if training.epoch < self.goals[i] and i not in self.errors
        ]

    def train_epoch(
        self,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Runs the next epoch of all running runs and validates it, or as much of it as
        ``should_stop`` allows. ``on_progress`` gets how many images have been used since the
        call."""
        images = 0

        def report(stats: list[EpochMetrics]) -> None:
            if on_progress is not None:
                on_progress(images + sum(each.samples for each in stats))

        for numbers in self._alike(self.running):
            trainings = [self.trainings[i] for i in numbers]
            before = sum(t.state.partial.samples for t in trainings)
            errors = train_epochs(trainings, should_stop, report)
            images += sum(t.state.partial.samples for t in trainings) - before
            self.errors.update({i: e for i, e in zip(numbers, errors, strict=True) if e})
            if on_progress is not None:
                on_progress(images)
            if should_stop is not None and should_stop():
                break
        self._validate()

    def _validate(self) -> None:
        done = [i for i in self.running if self.trainings[i].state.partial.finished]
        parts: defaultdict[int, list[int]] = defaultdict(list)  # by batch size, where it matters
        for i in done:
            config = self.trainings[i].config
            parts[config.batch_size if config.loader == "sliding" else 0].append(i)
        for group in parts.values():
            for numbers in self._alike(group):
                first = self.trainings[numbers[0]]
                networks = [self.trainings[i].network for i in numbers]
                results = first.engine.evaluate(networks, first.validation)
                for i, result in zip(numbers, results, strict=True):
                    try:
                        self.trainings[i].end_epoch(result)
                    except DivergedError as error:
                        self.errors[i] = error

    def test(self) -> dict[int, EvalMetrics]:
        """Each finished run's best parameters on the test part."""
        finished = [i for i, t in enumerate(self.trainings) if t.finished and i not in self.errors]
        found: dict[int, EvalMetrics] = {}
        for numbers in self._alike(finished):
            networks = [self.trainings[i].network for i in numbers]
            for i, network in zip(numbers, networks, strict=True):
                network.load_parameters(self.trainings[i].state.best)
            results = self.trainings[numbers[0]].engine.evaluate(networks, self.data.test)
            found.update(zip(numbers, results, strict=True))
        return found

    def _alike(self, numbers: Sequence[int]) -> list[list[int]]:
        """The runs in groups that share their engine."""
        groups: defaultdict[Engine, list[int]] = defaultdict(list)
        for i in numbers:
            groups[self.trainings[i].engine].append(i)
        return list(groups.values())

    def states(self) -> list[Checkpoint]:
        """Where each run stands, to go on from."""
        for training in self.trainings:
            training.state.engine = training.network.state_dict()
        return [training.state for training in self.trainings]
