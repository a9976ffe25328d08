"""The training loop: runs side by side, an epoch at a time, with callbacks."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from fastmlp.data.splits import DataSplits
from fastmlp.engines.base import Engine
from fastmlp.engines.metrics import EpochMetrics
from fastmlp.engines.registry import EnginePool, choose_engine, passed_over_gpu, resolve_device
from fastmlp.nn.init import initial_parameters
from fastmlp.training.callbacks import Callback, EarlyStopping
from fastmlp.training.checkpoint import Checkpoint
from fastmlp.training.config import TrainConfig
from fastmlp.training.run import TrainingRun, check_fits, layer_sizes
from fastmlp.utils.errors import EXIT_USAGE, UserError


class Trainer:
    """Trains runs on the same data side by side. Each gets the result that it would get alone: to
    the last bit with engines that promise it, as ``blocked`` does on the CPU.

    ``checkpoints`` are where runs resume, None for one that begins. A run that diverges is left
    behind with its error. Raises :class:`UserError` where a configuration does not fit the data or
    the machine, or its checkpoint does not fit it.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        data: DataSplits,
        checkpoints: Sequence[Checkpoint | None] | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        self.data = data
        self.callbacks = [*callbacks, EarlyStopping()]  # each run's own patience
        self.runs: list[TrainingRun] = []
        self._engines = EnginePool(data.train)
        self._in_epoch: list[TrainingRun] = []
        checkpoints = checkpoints or [None] * len(configs)
        for config, checkpoint in zip(configs, checkpoints, strict=True):
            self._add(config, checkpoint)

    def _add(self, config: TrainConfig, checkpoint: Checkpoint | None) -> None:
        device, sizes = resolve_device(config.device), layer_sizes(config, self.data)
        kind, reason = choose_engine(
            config.engine, device, sizes, config.optimizer_config, self.data.train
        )
        reason += passed_over_gpu(config.device)
        if checkpoint is not None:
            check_fits(checkpoint, self.data, sizes)  # before so many parameters are made
        if checkpoint is not None and config.engine == "auto":
            checkpoint.engine_reason = reason
        config = replace(config, device=str(device), engine=kind.name)
        engine = self._engines.get(kind, self.data.normalization(config.normalize), device)
        parameters = initial_parameters(sizes, config.init, config.seed, config.activation)
        try:
            state = engine.new_state(
                parameters, config.optimizer_config, block_steps=config.block_steps or None
            )
        except ValueError as error:
            raise UserError(str(error), EXIT_USAGE, options=("block_steps",)) from error
        self.runs.append(TrainingRun(config, self.data, engine, state, reason, checkpoint))

    @property
    def active(self) -> list[TrainingRun]:
        """The runs that have epochs left before their goals."""
        return [run for run in self.runs if run.active]

    @property
    def epoch(self) -> int:
        """The largest number of finished epochs among the active runs."""
        return max((run.epoch for run in self._in_epoch or self.active or self.runs), default=0)

    @property
    def epochs_done(self) -> float:
        """The finished epochs plus the fraction of the current one."""
        runs = self._in_epoch or self.active
        images = sum(run.images for run in runs)
        return self.epoch + sum(run.under_way.samples for run in runs) / max(images, 1)

    def should_stop(self) -> bool:
        """Whether a callback wants training to stop."""
        return any(callback.should_stop() for callback in self.callbacks)

    def fit(self, *, test: bool = False) -> None:
        """Train all runs to their goals, or until a callback stops them; then, with ``test``,
        measure the best parameters of each on the test part."""
        with contextlib.ExitStack() as stack:
            for callback in self.callbacks:
                stack.callback(callback.close)
            self._tell(lambda callback: callback.on_train_begin(self))
            while True:
                while self.active and not self.should_stop():
                    self.train_epoch()
                raised = [callback.on_goals(self) for callback in self.callbacks]
                if not any(raised):
                    break
            if test and not self.active:
                self._test()
            self._tell(lambda callback: callback.on_train_end(self))

    def train_epoch(self) -> None:
        """Train and validate the next epoch of all active runs, or as much of it as the callbacks
        allow."""
        self._in_epoch = self.active
        for i, group in enumerate(_groups(self._in_epoch, lambda run: run.engine)):
            if i > 0 and self.should_stop():
                break
            self._train_group(group)
        done = [run for run in self._in_epoch if run.active and run.checkpoint.partial.finished]
        for group in _groups(done, _validation_key):
            results = group[0].engine.evaluate([r.state for r in group], group[0].validation)
            for run, result in zip(group, results, strict=True):
                improved = run.end_epoch(result)
                if run.error is None:
                    self._end_epoch(run, improved)
        self._in_epoch = []
        self._tell(lambda callback: callback.on_epoch_end(self))

    def _train_group(self, runs: list[TrainingRun]) -> None:
        """Train runs that share an engine for the rest of their epochs."""
        before = [run.checkpoint.partial for run in runs]

        def report(done: Sequence[EpochMetrics]) -> None:
            self._report(runs, [old + new for old, new in zip(before, done, strict=True)])

        begin = time.perf_counter()
        results = runs[0].engine.train_epoch(
            [run.state for run in runs],
            [run.next_epoch() for run in runs],
            should_stop=self.should_stop,
            on_progress=report,
        )
        seconds = time.perf_counter() - begin
        images = [r.samples if isinstance(r, EpochMetrics) else 0 for r in results]
        for run, result, count in zip(runs, results, images, strict=True):
            run.add(result, seconds * count / max(sum(images), 1))
        self._report(runs, [r.under_way if r.error else r.checkpoint.partial for r in runs])

    def _report(self, runs: Sequence[TrainingRun], now: Sequence[EpochMetrics]) -> None:
        """Tell the callbacks if more images have been used than they know of."""
        if any(r.under_way.samples != n.samples for r, n in zip(runs, now, strict=True)):
            for run, metrics in zip(runs, now, strict=True):
                run.under_way = metrics
            self._tell(lambda callback: callback.on_progress(self))

    def _end_epoch(self, run: TrainingRun, improved: bool) -> None:
        self._tell(lambda callback: callback.on_run_epoch_end(self, run, improved))

    def _test(self) -> None:
        if self.data.test is None:
            return
        finished = [run for run in self.runs if run.finished and run.error is None]
        for group in _groups(finished, lambda run: run.engine):
            engine = group[0].engine
            best = [
                engine.new_state(run.checkpoint.best, run.config.optimizer_config) for run in group
            ]
            for run, result in zip(group, engine.evaluate(best, self.data.test), strict=True):
                run.test = result

    def _tell(self, what: Callable[[Callback], object]) -> None:
        for callback in self.callbacks:
            what(callback)


def _validation_key(run: TrainingRun) -> tuple[Engine, int]:
    """The validation images of the sliding loader depend on the batch size."""
    batch = run.config.batch_size if run.config.loader == "sliding" else 0
    return run.engine, batch


def _groups(
    runs: Sequence[TrainingRun], key: Callable[[TrainingRun], Hashable]
) -> list[list[TrainingRun]]:
    groups: defaultdict[Hashable, list[TrainingRun]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return list(groups.values())


@contextlib.contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Set PyTorch's number of threads, 0 for the present one: sums over the batch are split by
    thread, so the same bits need the same number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
