"""Check that contenders take the same steps, and time their epochs in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from contenders import OURS, AnyTask, Contender, ContenderError, Worker
from peers import Parameters
from timing import Timing, summarize

STEPS_CHECKED = 64
AnyContender = Contender | Worker


def prepare(contender: AnyContender, task: AnyTask) -> list[Parameters]:
    """Make a contender for a task; return its parameters after STEPS_CHECKED steps."""
    contender.make(task)
    contender.epoch(0, STEPS_CHECKED * task.batch)
    return [{k: t.cpu() for k, t in p.items()} for p in contender.parameters()]


def check_same(name: str, mine: list[Parameters], theirs: list[Parameters], task: AnyTask) -> None:
    """Raise AssertionError unless two contenders have done the same STEPS_CHECKED steps.

    They may differ by three hundredths of the way that the parameters have gone: rounding makes up
    to one of them, where it decides whether a hidden unit is just above zero.
    """
    for model, (ours, truth) in enumerate(zip(mine, theirs, strict=True)):
        for key, begin in task.start(model).items():
            way, apart = (truth[key] - begin).norm(), (ours[key] - truth[key]).norm()
            assert apart < 0.03 * way, f"{name}: {key} is {apart} off on a way of {way}"


def prepare_all(
    contenders: Sequence[AnyContender], task: AnyTask, on_ready: Callable[[str], None] | None = None
) -> tuple[list[AnyContender], dict[str, str]]:
    """Make contenders for a task and check that they do the same steps.

    Returns those that compute the same as the first peer that can be made, and, by name, why the
    others are left out. ``on_ready`` is called with each name when it has been checked.
    """
    truth, good, dropped = None, [], {}
    for contender in sorted(contenders, key=lambda c: c.name.startswith(OURS)):  # peers first
        try:
            found = prepare(contender, task)
            truth = truth or found
            check_same(contender.name, found, truth, task)
            good.append(contender)
        except (ContenderError, AssertionError) as error:
            dropped[contender.name] = str(error).splitlines()[0]
        if on_ready is not None:
            on_ready(contender.name)
    return good, dropped


def images_of_turn(contender: AnyContender, task: AnyTask, seconds: float) -> int:
    """Return how many images take about ``seconds``, in whole batches; at most an epoch's."""
    few = min(STEPS_CHECKED * task.batch, task.images)
    spent = min(contender.epoch(turn, few) for turn in (1, 2))
    steps = int(seconds / spent * few / task.batch)
    return min(max(steps, 8) * task.batch, task.images)


def time_epochs(
    contenders: Sequence[AnyContender],
    task: AnyTask,
    rounds: int,
    turn_seconds: float,
    *,
    on_turn: Callable[[str], None],
    on_done: Callable[[str, Timing], None],
) -> dict[str, Timing]:
    """Time an epoch of each of the contenders, which are made, in turn; return its microseconds.

    A turn takes about ``turn_seconds`` and counts by its mean, since a shared machine takes a while
    to speed up: several whole epochs of a contender that is quick, and of one that is not, part of
    an epoch, from which the time of a whole one is computed. An equal turn that does not count
    comes first. ``on_turn`` is called after each turn, and ``on_done`` as soon as a contender's
    timing is complete.
    """
    images: dict[str, int] = {}
    for contender in contenders:
        name = contender.name
        images[name] = images_of_turn(contender, task, turn_seconds)
        contender.epoch(3, images[name])
        on_turn(name)
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    timings: dict[str, Timing] = {}
    for turn in range(1, rounds + 1):
        for contender in contenders:
            name, epochs = contender.name, list[float]()
            while sum(epochs) < turn_seconds / 2:
                epochs.append(contender.epoch(100 * turn + len(epochs), images[name]))
            whole = task.images / images[name]
            times[name].append(sum(epochs) / len(epochs) * whole * 1e6)
            on_turn(name)
            if turn == rounds:
                timings[name] = summarize(times[name])
                on_done(name, timings[name])
    return timings
