"""The flags that the commands ``train`` and ``sweep`` have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from fastmlp.cli.parser import ArgumentParser
from fastmlp.data.cifar10 import DIRECTORY_VARIABLE, cache_folder
from fastmlp.data.dataset import DATASETS, current_name
from fastmlp.data.download import URL_VARIABLE
from fastmlp.data.splits import TEST_SETS, parse_split
from fastmlp.engines.optimizers import OPTIMIZERS, PRECISIONS
from fastmlp.engines.registry import ENGINES
from fastmlp.nn.init import INITS
from fastmlp.training.config import LOADERS, LR_SCHEDULES, NORMALIZATIONS, TrainConfig


def add_training_arguments(
    group: argparse._ArgumentGroup, defaults: TrainConfig, lists: bool = False
) -> None:
    """Adds a flag for each field that decides what is trained. With ``lists`` those that a sweep
    can vary take several values, with commas between them."""
    add = group.add_argument
    number, whole = (_list_of(kind) if lists else kind for kind in (float, int))
    x, n = ("X[,X...]", "N[,N...]") if lists else ("X", "N")
    if lists:
        widths = "-".join(map(str, defaults.hidden))
        what = "widths of the hidden layers, several of one network as 512-256"
        add("--hidden", type=_hidden_list, metavar="H[-H...][,...]", default=widths, help=what)
    else:
        widths = ",".join(map(str, defaults.hidden))
        add("--hidden", metavar="H[,H...]", default=widths, help="widths of the hidden layers")
    add("--init", default=defaults.init, help=f"initial parameters: {INITS}")
    add(
        "--normalize",
        choices=NORMALIZATIONS,
        default=defaults.normalize,
        help="pixels divided by 255, or standardised",
    )
    add(
        "--augment",
        metavar="none|flip|shift:N|flip,shift:N",
        default=defaults.augment,
        help="flip and shift the images at random, afresh every epoch",
    )
    add(
        "--loader",
        choices=LOADERS,
        default=defaults.loader,
        help="sliding repeats a slip: batch i is the images i to i + N of the shuffled ones",
    )
    add("--batch-size", type=whole, metavar=n, default=defaults.batch_size, help="images a step")
    add("--epochs", type=int, metavar="N", default=defaults.epochs, help="passes over the data")
    _add_step_arguments(group, defaults, number, x)
    add("--seed", type=int, metavar="N", default=defaults.seed, help="of all random numbers")


def _add_step_arguments(
    group: argparse._ArgumentGroup, defaults: TrainConfig, number: Callable[[str], Any], x: str
) -> None:
    """The flags that say how a step moves the parameters; ``number`` reads one, or several that are
    shown as ``x``."""
    add = group.add_argument
    add(
        "--optimizer",
        choices=OPTIMIZERS,
        default=defaults.optimizer,
        help="adam and adamw as in torch.optim; try --lr 1e-3 with them",
    )
    add("--lr", type=number, metavar=x, default=defaults.lr, help="learning rate")
    add(
        "--lr-decay",
        type=number,
        metavar=x,
        default=defaults.lr_decay,
        help="factor on the learning rate after every epoch",
    )
    add(
        "--lr-schedule",
        choices=LR_SCHEDULES,
        default=defaults.lr_schedule,
        help="cosine goes down to nearly 0 at the last epoch",
    )
    add(
        "--momentum",
        type=number,
        metavar=x,
        default=defaults.momentum,
        help="of sgd alone; 0: none",
    )
    add(
        "--nesterov",
        action=argparse.BooleanOptionalAction,
        default=defaults.nesterov,
        help="Nesterov's momentum, of sgd alone",
    )
    add(
        "--weight-decay",
        type=number,
        metavar=x,
        default=defaults.weight_decay,
        help="times the parameter, added to the gradient; adamw takes it from the parameter",
    )
    add(
        "--grad-average",
        action=argparse.BooleanOptionalAction,
        default=defaults.grad_average,
        help="divide the mean gradient by the batch size once more",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default=defaults.precision,
        help="bfloat16 runs the layers as torch.autocast does",
    )


def add_machine_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the flags that say where and how a run is made."""
    add = group.add_argument
    add("--device", metavar="auto|cpu|cuda[:N]", default=TrainConfig.device, help="where to run")
    add(
        "--engine",
        choices=("auto", *ENGINES),
        default=TrainConfig.engine,
        help="how to run an epoch; auto takes the fastest that works here and says which",
    )
    add(
        "--block-steps",
        type=int,
        metavar="N",
        default=TrainConfig.block_steps,
        help="steps in a block of the engine blocked; 0 leaves the number to it",
    )
    add(
        "--threads",
        type=int,
        metavar="N",
        default=TrainConfig.threads,
        help="CPU threads; 0 leaves the number to PyTorch",
    )


def given_flags(parser: ArgumentParser, argv: list[str]) -> dict[str, Any]:
    """The flags that stand on the command line, without any default: argparse sets a default only
    where the namespace has no such attribute yet."""
    absent = object()
    namespace = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), absent))
    values = vars(parser.parse_args(argv, namespace))
    return {name: value for name, value in values.items() if value is not absent}


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def values(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    values.__name__ = f"list of {kind.__name__} values"  # argparse names it in its errors
    return values


def _hidden_list(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, part.split("-"))) for part in text.split(",")]


_hidden_list.__name__ = "list of widths"


def add_data_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds ``--dataset --data-dir --data-url --split --test-set``, whose values are the arguments
    of :func:`load_dataset` and :func:`split_dataset` of the same names."""
    add_source_arguments(parser)
    parser.add_argument(
        "--split",
        type=lambda text: parse_split(text) and text,  # refused before anything is downloaded
        default="60/20/20",
        metavar="TRAIN/VAL/TEST",
        help="percentages of the 50,000 training images, in their order",
    )
    parser.add_argument(
        "--test-set",
        choices=TEST_SETS,
        default="split",
        help="test on the third part of the split or on the 10,000 official test images",
    )


def add_source_arguments(parser: argparse._ActionsContainer, dataset: bool = True) -> None:
    if dataset:
        parser.add_argument(
            "--dataset",
            type=current_name,
            choices=DATASETS,
            default="auto",
            help="auto: CIFAR-10 if found or downloadable, else the built-in synthetic set",
        )
    cache = str(cache_folder()).replace("%", "%%")  # a "%" in a path is no format of argparse
    # "%(default).0s" prints nothing; it keeps "(default: None)" away.
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where CIFAR-10 lies or is downloaded to; if not given, "
        f"${DIRECTORY_VARIABLE}, then {cache}%(default).0s",
    )
    parser.add_argument(
        "--data-url",
        metavar="URL",
        help="a mirror of either official archive; if not given, "
        f"${URL_VARIABLE}, then the official host%(default).0s",
    )
