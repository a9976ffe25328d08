"""A sweep: many configurations, each with several seeds, trained side by side and compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastmlp.data.splits import DataSplits
from fastmlp.sweeps.checkpoint import SaveSweep, SweepDirectory, config_key
from fastmlp.sweeps.distributed import ProcessGroup
from fastmlp.sweeps.halving import SuccessiveHalving
from fastmlp.sweeps.results import SweepResult, SweepShare
from fastmlp.sweeps.search_space import check_count, plan
from fastmlp.training.callbacks import Callback, ShowBar, StopWhen, checked_callbacks
from fastmlp.training.config import TrainConfig
from fastmlp.training.data import load_splits
from fastmlp.training.own_data import resolve_base
from fastmlp.training.trainer import Trainer, thread_count
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.signals import stop_on_signals


def sweep(
    base: TrainConfig | Mapping[str, Any],
    values: Mapping[str, Sequence[Any]],
    *,
    vary: str = "one",
    seeds: int = 1,
    successive_halving: bool = False,
    data: DataSplits | tuple[object, object] | None = None,
    out: str | Path | None = None,
    callbacks: Iterable[Callback] = (),
    should_stop: Callable[[], bool] | None = None,
    on_epoch: Callable[[SweepResult, int], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> SweepResult:
    """Train the configurations that :func:`~fastmlp.sweeps.search_space.plan` makes of ``values``,
    each with ``seeds`` seeds from the base's on, all side by side, and compare them on the
    validation part.

    ``data`` may be rows and targets of one's own, (X, y); ``base`` then holds the options that
    ``fit(X, y, ...)`` takes, such as ``{"epochs": 50}``, and a regression is compared by its
    validation loss. Each run comes to what ``fit`` makes of it; one that diverges is marked. With
    ``successive_halving`` the half of the configurations with the lower scores is dropped after an
    eighth, a quarter and a half of the epochs. ``out`` is a folder for the results, new, empty or
    that of the same sweep, which then resumes where it was stopped. Under ``torchrun`` every
    process trains its share, on a GPU of its own where there are any, and all get the whole result.
    ``callbacks`` are told of all runs of this process. ``on_epoch`` gets the results so far, of
    this process, and the number of epochs done; ``on_progress``, several times a second, that
    number with its fraction. Raises :class:`UserError`.

    >>> import fastmlp, numpy as np
    >>> X = np.random.default_rng(0).normal(size=(300, 4))
    >>> found = fastmlp.sweep({"epochs": 5}, {"lr": [1e-2, 1e-9]}, data=(X, X[:, 0] > 0))
    >>> found.best_values
    {'lr': 0.01}
    """
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, got {seeds}", EXIT_USAGE)
    base, data = resolve_base(base, data)
    base, configs = plan(base, values, vary)
    check_count(len(configs), seeds)
    lists = {
        name: list(dict.fromkeys(getattr(config, name) for config in configs)) for name in values
    }
    workers = ProcessGroup.join()
    out = workers.gather([out])[0]  # where it is named by the time, each has its own
    with contextlib.ExitStack() as stack:
        data = data or workers.first_then_others(lambda: load_splits(base, workers.is_first))
        folder = stack.enter_context(SweepDirectory.at(out, workers)) if out is not None else None
        seeded = [replace(c, seed=c.seed + s) for s in range(seeds) for c in configs]
        share = SweepShare(base, lists, configs, workers.share(seeded))
        # until the results are written, too
        stop = should_stop or stack.enter_context(stop_on_signals())
        callbacks = [*checked_callbacks(callbacks), StopWhen(stop), ShowBar()]
        if successive_halving:
            callbacks.append(SuccessiveHalving(share, workers))
        if folder is not None:
            callbacks.append(SaveSweep(folder, share))
        callbacks.append(_Tell(share, on_epoch, on_progress))
        found = folder.read_states() if folder is not None else {}
        with thread_count(base.threads):
            trainer = Trainer(
                [workers.placed(config) for config in share.seeded],
                data,
                [found.get(config_key(config)) for config in share.seeded],
                callbacks,
            )
            trainer.fit()
        interrupted = any(workers.gather([bool(trainer.active)]))
        result = share.result(workers.gather(share.runs(trainer)))
        result = replace(result, interrupted=interrupted)
        if folder is not None and workers.is_first:
            folder.write(result)
        return result


class _Tell(Callback):
    """Passes the results so far to functions."""

    def __init__(
        self,
        share: SweepShare,
        on_epoch: Callable[[SweepResult, int], None] | None,
        on_progress: Callable[[float], None] | None,
    ) -> None:
        self._share, self._on_epoch, self._on_progress = share, on_epoch, on_progress

    def on_progress(self, trainer: Trainer) -> None:
        if self._on_progress is not None:
            self._on_progress(trainer.epochs_done)

    def on_epoch_end(self, trainer: Trainer) -> None:
        if self._on_epoch is not None:
            self._on_epoch(self._share.result(self._share.runs(trainer)), trainer.epoch)
