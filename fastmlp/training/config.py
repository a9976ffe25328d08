"""What a training run does, as one frozen dataclass whose fields are its options."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmlp.data.dataset import DATASETS, current_name
from fastmlp.data.splits import TEST_SETS, parse_split
from fastmlp.data.transforms import parse_augmentation
from fastmlp.engines.optimizers import OPTIMIZERS, PRECISIONS, OptimizerConfig
from fastmlp.engines.registry import ENGINES
from fastmlp.nn.init import INITS, parse_init
from fastmlp.ops.activations import ACTIVATIONS
from fastmlp.ops.losses import LOSSES
from fastmlp.training.option_schema import (
    ABOVE_ZERO,
    BELOW_ONE,
    DEVICE,
    FLAG,
    NOT_NEGATIVE,
    WIDTHS,
    one_of,
    option,
    options_of,
    parse_widths,
    text,
    whole,
)
from fastmlp.training.schedules import LR_SCHEDULES, decayed
from fastmlp.utils.errors import EXIT_USAGE, UserError
from fastmlp.utils.untrusted import quoted, reason, without_secrets

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BLOCK_STEPS = 1024
"""A block holds all its images and their Gram matrix in memory."""
MAX_THREADS = 4096
"""More than any machine has; OpenMP aborts the process over far larger numbers."""


@dataclass(frozen=True)
class TrainConfig:
    """The options of a training run; written to ``config.json`` in its folder.

    The defaults are those of the preset ``default``: plain SGD on small batches, of which the
    engine ``blocked`` takes several at once. They were chosen on validation accuracy; batches of
    128 with Nesterov's momentum reach the same in the same time.

    ``optimizer`` is one of ``torch.optim.SGD``, ``Adam`` and ``AdamW``; the latter two want a
    smaller ``lr`` than SGD, 1e-3 or so. ``momentum`` and ``nesterov`` are SGD's; another optimizer
    accepts only 0 and false.

    ``precision`` "bfloat16" runs the layers as ``torch.autocast`` does, forward and backward; the
    parameters, the loss and the optimizer stay float32.

    Raises :class:`UserError` (exit code 2) where a value cannot be used.

    >>> import fastmlp
    >>> config = fastmlp.TrainConfig(hidden=(512, 256), lr=0.01, epochs=10)
    >>> config.batch_size, round(config.lr_at(9), 6)
    (16, 0.000245)
    >>> fastmlp.TrainConfig(batch_size=0)
    Traceback (most recent call last):
        ...
    fastmlp.utils.errors.UserError: batch_size must be a whole number of at least 1, got 0
    """

    dataset: str = option(
        "auto",
        "auto: CIFAR-10 if found or downloadable, else the built-in synthetic set; mnist, "
        "fashion-mnist and cifar100 are looked for in the data folder",
        text("the name of a data set", choices=DATASETS),
        group="data",
        normalize=current_name,
    )
    data_dir: str | None = option(
        None,
        "where CIFAR-10 lies or is downloaded to",
        text("a folder", none=True),
        group="data",
        metavar="DIR",
        machine=True,
    )
    data_url: str | None = option(
        None,
        "a mirror of either official archive",
        text("an address", none=True),
        group="data",
        metavar="URL",
        machine=True,
    )
    split: str = option(
        "60/20/20",
        "percentages of the 50,000 training images, in their order",
        text("percentages like 60/20/20", parse=parse_split),
        group="data",
        metavar="TRAIN/VAL/TEST",
    )
    test_set: str = option(
        "split",
        "test on the third part of the split or on the 10,000 official test images",
        text("the name of a test part", choices=TEST_SETS),
        group="data",
    )
    hidden: tuple[int, ...] = option(
        (256,),
        "widths of the hidden layers; none: softmax or linear regression",
        WIDTHS,
        metavar="H[,H...]",
        varied=True,
        normalize=parse_widths,
    )
    init: str = option(
        "kaiming",
        f"initial parameters: {INITS}",
        text("the name of an initialisation", parse=parse_init),
        varied=True,
    )
    normalize: str = option(
        "standard",
        "pixels divided by 255, or standardised",
        one_of(("unit", "standard")),
        varied=True,
    )
    augment: str = option(
        "none",
        "flip and shift the images at random, afresh every epoch",
        text("the name of an augmentation", parse=parse_augmentation),
        metavar="none|flip|shift:N|flip,shift:N",
        varied=True,
    )
    loader: str = option(
        "shuffle",
        "sliding is a common mistake: batch i is the shuffled images i to i + N",
        one_of(("shuffle", "sliding")),
    )
    batch_size: int = option(16, "images a step", whole(1), metavar="N", varied=True)
    optimizer: str = option(
        "sgd",
        "adam and adamw as in torch.optim; they want a learning rate of 1e-3 or so",
        one_of(OPTIMIZERS),
    )
    beta1: float = option(
        0.9, "decay of the mean gradient in adam and adamw", BELOW_ONE, metavar="X", varied=True
    )
    beta2: float = option(
        0.999, "decay of the mean square in adam and adamw", BELOW_ONE, metavar="X", varied=True
    )
    eps: float = option(
        1e-8, "added to the root of the mean square in adam and adamw", ABOVE_ZERO, metavar="X"
    )
    loss: str = option(
        "cross_entropy",
        "what is minimised: cross_entropy for classes, another for numbers to predict",
        one_of(LOSSES),
    )
    label_smoothing: float = option(
        0.0,
        "share of each label given to all classes alike; for cross_entropy",
        BELOW_ONE,
        metavar="X",
        varied=True,
    )
    activation: str = option("relu", "of the hidden layers", one_of(ACTIVATIONS))
    dropout: float = option(
        0.0,
        "share of the outputs of hidden layers that a step drops",
        BELOW_ONE,
        metavar="X",
        varied=True,
    )
    clip_norm: float = option(
        0.0,
        "gradients are scaled to a norm of at most this; 0 leaves them",
        NOT_NEGATIVE,
        metavar="X",
        varied=True,
    )
    lr: float = option(0.02, "learning rate", ABOVE_ZERO, metavar="X", varied=True)
    lr_decay: float = option(
        1.0,
        "factor on the learning rate after every epoch",
        ABOVE_ZERO,
        metavar="X",
        varied=True,
    )
    lr_schedule: str = option(
        "cosine",
        "cosine falls to nearly 0 at the last epoch; one_cycle, as OneCycleLR, rises to lr first",
        one_of(LR_SCHEDULES),
        varied=True,
    )
    momentum: float = option(0.0, "of sgd alone; 0: none", BELOW_ONE, metavar="X", varied=True)
    nesterov: bool = option(False, "Nesterov's momentum, of sgd alone", FLAG)
    weight_decay: float = option(
        0.01,
        "so much of the parameter is added to its gradient; adamw takes it from the parameter",
        NOT_NEGATIVE,
        metavar="X",
        varied=True,
    )
    grad_average: bool = option(False, "divide the mean gradient by the batch size once more", FLAG)
    precision: str = option(
        "float32", "bfloat16 runs the layers as torch.autocast does", one_of(PRECISIONS)
    )
    epochs: int = option(40, "passes over the data", whole(1), metavar="N")
    patience: int = option(
        0,
        "stop after so many epochs in a row that are no better in validation; 0: never",
        whole(0),
        metavar="N",
    )
    seed: int = option(0, "of all random numbers", whole(0), metavar="N")
    device: str = option(
        "auto",
        "where to run",
        DEVICE,
        group="machine",
        metavar="auto|cpu|cuda[:N]",
        machine=True,
    )
    engine: str = option(
        "auto",
        "how to run an epoch; auto takes the fastest that works here and says which",
        one_of(("auto", *ENGINES)),
        group="machine",
        machine=True,
    )
    block_steps: int = option(
        0,
        "steps in a block of the engine blocked; 0 leaves the number to it",
        whole(0, MAX_BLOCK_STEPS),
        group="machine",
        metavar="N",
        machine=True,
    )
    threads: int = option(
        0,
        "CPU threads; 0 leaves the number to PyTorch",
        whole(0, MAX_THREADS),
        group="machine",
        metavar="N",
        machine=True,
    )
    save_every: int = option(
        1, "epochs between two saves", whole(1), group="run", metavar="N", machine=True
    )

    def __post_init__(self) -> None:
        for name, each in OPTIONS.items():
            object.__setattr__(self, name, each.read(getattr(self, name)))
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise UserError(
                f"momentum and nesterov are for the optimizer sgd, not {self.optimizer}; leave "
                "them out, or set them to 0 and false",
                EXIT_USAGE,
                options=("momentum", "nesterov"),
            )
        if self.nesterov and self.momentum == 0:
            raise UserError(
                "nesterov needs a momentum above 0, got momentum 0; turn nesterov off",
                EXIT_USAGE,
                options=("nesterov",),
            )
        if self.label_smoothing and self.loss != "cross_entropy":
            raise UserError(
                f"label_smoothing is for the loss cross_entropy, not {self.loss}; set it to 0",
                EXIT_USAGE,
                options=("label_smoothing",),
            )
        if not math.isfinite(decayed(self.lr, self.lr_decay, self.epochs - 1)):
            raise UserError(
                f"lr {self.lr:g} times lr_decay {self.lr_decay:g} after every epoch grows beyond "
                f"all numbers in {self.epochs} epochs; make it at most 1",
                EXIT_USAGE,
                options=("lr", "lr_decay"),
            )

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0.

        ``lr * lr_decay**epoch``, times ``(1 + cos(pi * epoch / epochs)) / 2`` under "cosine" and
        :func:`~fastmlp.training.schedules.one_cycle` under "one_cycle".
        """
        factor = LR_SCHEDULES[self.lr_schedule](epoch, self.epochs)
        return decayed(self.lr, self.lr_decay, epoch) * factor

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The options of a step, as the engines take them."""
        return OptimizerConfig(
            batch_size=self.batch_size,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            grad_average=self.grad_average,
            optimizer=self.optimizer,
            precision=self.precision,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            clip_norm=self.clip_norm,
            loss=self.loss,
            label_smoothing=self.label_smoothing,
            activation=self.activation,
            dropout=self.dropout,
            seed=self.seed if self.dropout else 0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them: ``hidden`` as a list, ``data_url`` without its
        secrets."""
        url = self.data_url and without_secrets(self.data_url)
        return {**asdict(self), "hidden": list(self.hidden), "data_url": url}

    def essentials(self) -> dict[str, Any]:
        """Return :meth:`to_dict` without what belongs to the machine: what decides the results."""
        return {k: v for k, v in self.to_dict().items() if not OPTIONS[k].machine}


OPTIONS = options_of(TrainConfig)
"""The options by name."""


def config_from_dict(values: Mapping[str, Any], source: str = "the configuration") -> TrainConfig:
    """Return a configuration from a mapping of option names; raise :class:`UserError` for unknown
    ones. ``source`` is how an error names where the values came from."""
    _check_keys(values, list(OPTIONS), source)
    return TrainConfig(**values)


def load_config_file(path: str | Path) -> dict[str, Any]:
    """Return the values of a TOML file: option names (``-`` or ``_``) and ``preset``.

    Raises :class:`UserError` where the file is missing, is not TOML or has unknown keys.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read the config file {path}: {error.strerror}", 2) from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, too long or too deep
        raise UserError(f"The config file {path} is not valid TOML: {reason(error)}", 2) from error
    values = {key.replace("-", "_"): value for key, value in values.items()}
    _check_keys(values, ["preset", *OPTIONS], path)
    return values


def _check_keys(values: Mapping[str, Any], known: list[str], source: str | Path) -> None:
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "fastmlp train --help shows them all"
            raise UserError(f"{source} has an unknown key {quoted(key)}; {hint}", EXIT_USAGE)
