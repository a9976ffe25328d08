"""What a training run does: one frozen dataclass, its presets, and how values are put together.

A value comes from the command line, else from the ``--config`` file, else from the preset, else it
is the field's default.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastmlp.data.dataset import current_name
from fastmlp.data.transforms import parse_augmentation
from fastmlp.engines.optimizers import OPTIMIZERS, PRECISIONS
from fastmlp.engines.registry import ENGINES
from fastmlp.nn.init import parse_init
from fastmlp.utils.errors import EXIT_USAGE, UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LR_SCHEDULES = ("constant", "cosine")
NORMALIZATIONS = ("unit", "standard")
LOADERS = ("shuffle", "sliding")
MACHINE_FIELDS = (
    *("data_dir", "data_url", "device", "engine", "block_steps", "threads", "save_every"),
)
"""Fields that do not decide what a run comes to, up to rounding."""
MAX_BLOCK_STEPS = 1024
"""A block holds all its images and their Gram matrix in memory."""
MAX_THREADS = 4096
"""More than any machine has; OpenMP aborts the process over far larger numbers."""
_DEPENDS: Any = None
"""The default of a field that follows from other fields."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes; written to ``config.json`` in its folder.

    The defaults are those of the preset ``default``: chosen on validation accuracy among
    configurations that finish in about a minute on two cores.

    ``optimizer`` is one of ``torch.optim.SGD``, ``Adam`` and ``AdamW``, the latter two with betas
    of 0.9 and 0.999 and an eps of 1e-8, which are not fields; they want a smaller ``lr`` than SGD,
    1e-3 or so. ``momentum``, 0.9 where none is given, and ``nesterov``, on where there is momentum,
    are SGD's: with another optimizer they are 0 and off, and nothing else is taken.
    ``weight_decay`` times the parameter is added to the gradient; ``adamw`` takes it from the
    parameter itself.

    ``precision`` "bfloat16" runs the layers as ``torch.autocast`` does, forward and backward; the
    parameters, the loss and the optimizer stay float32.

    Raises :class:`UserError` (exit code 2) where a value cannot be used.
    """

    dataset: str = "auto"
    data_dir: str | None = None
    data_url: str | None = None
    split: str = "60/20/20"
    test_set: str = "split"
    hidden: tuple[int, ...] = (256,)
    init: str = "kaiming"
    normalize: str = "standard"
    augment: str = "none"
    loader: str = "shuffle"
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.02
    lr_decay: float = 1.0
    lr_schedule: str = "cosine"
    momentum: float = _DEPENDS
    nesterov: bool = _DEPENDS
    weight_decay: float = 0.01
    grad_average: bool = False
    precision: str = "float32"
    epochs: int = 40
    seed: int = 0
    device: str = "auto"
    engine: str = "auto"
    block_steps: int = 0
    threads: int = 0
    save_every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", _parse_hidden(self.hidden))
        object.__setattr__(self, "dataset", current_name(self.dataset))
        if self.momentum is _DEPENDS:
            object.__setattr__(self, "momentum", 0.9 if self.optimizer == "sgd" else 0.0)
        if self.nesterov is _DEPENDS:
            object.__setattr__(self, "nesterov", self.momentum != 0)
        for name, (accepts, wanted) in _RULES.items():
            value = getattr(self, name)
            if not accepts(value):
                raise UserError(f"{name} must be {wanted}, got {_shown(value)}", EXIT_USAGE)
        try:
            parse_init(self.init)
            parse_augmentation(self.augment)
        except ValueError as error:
            raise UserError(str(error), EXIT_USAGE) from error
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise UserError(
                f"momentum and nesterov are for the optimizer sgd, not {self.optimizer}; leave "
                "them out, or set them to 0 and false",
                EXIT_USAGE,
            )
        if self.nesterov and self.momentum == 0:
            raise UserError(
                "nesterov needs a momentum above 0, got momentum 0; turn nesterov off", EXIT_USAGE
            )
        if not math.isfinite(self._decayed_lr(self.epochs - 1)):
            raise UserError(
                f"lr {self.lr:g} times lr_decay {self.lr_decay:g} after every epoch grows beyond "
                f"all numbers in {self.epochs} epochs; use an lr_decay of at most 1",
                EXIT_USAGE,
            )

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0.

        ``lr * lr_decay**epoch``, times ``(1 + cos(pi * epoch / epochs)) / 2`` under "cosine".
        """
        lr = self._decayed_lr(epoch)
        if self.lr_schedule == "cosine":
            lr *= 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return lr

    def _decayed_lr(self, epoch: int) -> float:
        try:
            return self.lr * float(self.lr_decay) ** epoch
        except OverflowError:
            return math.inf

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them (``hidden`` as a list)."""
        return {**asdict(self), "hidden": list(self.hidden)}

    def essentials(self) -> dict[str, Any]:
        """:meth:`to_dict` without :data:`MACHINE_FIELDS`: what decides the results."""
        return {k: v for k, v in self.to_dict().items() if k not in MACHINE_FIELDS}


def config_from_dict(values: Mapping[str, Any], source: str = "the configuration") -> TrainConfig:
    """A configuration from a mapping of field names; raises :class:`UserError` for unknown ones.

    ``source`` is how an error names where the values came from.
    """
    known = [field.name for field in fields(TrainConfig)]
    for key in values:
        if key not in known:
            raise UserError(f"{source} has an unknown key {key!r}; {_suggestion(key, known)}", 2)
    return TrainConfig(**values)


def load_config_file(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file: field names of :class:`TrainConfig` (``-`` or ``_``), ``preset``.

    Raises :class:`UserError` where the file is missing, is not TOML or has unknown keys.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read the config file {path}: {error.strerror}", 2) from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, too long or too deep
        raise UserError(f"The config file {path} is not valid TOML: {error}", 2) from error
    values = {key.replace("-", "_"): value for key, value in values.items()}
    known = ["preset", *(field.name for field in fields(TrainConfig))]
    for key in values:
        if key not in known:
            raise UserError(f"{path} has an unknown key {key!r}; {_suggestion(key, known)}", 2)
    return values


def _suggestion(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _parse_hidden(hidden: object) -> tuple[int, ...]:
    """Layer widths from 256, "256", "512,256" or a sequence of whole numbers."""
    parts: object = hidden
    if isinstance(hidden, str):
        parts = [int(part) if _is_digits(part) else part for part in hidden.split(",")]
    elif isinstance(hidden, int):
        parts = [hidden]
    if isinstance(parts, (list, tuple)) and parts and all(_is_whole(1)(part) for part in parts):
        return tuple(parts)
    raise UserError(
        f"hidden must be one or more layer widths like 256 or 512,256, got {_shown(hidden)}",
        EXIT_USAGE,
    )


def _shown(value: object) -> str:
    """``repr``, no longer than a person reads; Python refuses to write integers of many digits."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_digits(text: str) -> bool:
    """Whether ``text`` is a whole number, not too long for :func:`_is_whole`."""
    return re.fullmatch(r"\s*\d{1,19}\s*", text) is not None


def _is_whole(least: int, most: int = 2**63 - 1) -> Callable[[object], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _is_number(accepts: Callable[[float], bool]) -> Callable[[object], bool]:
    return lambda value: (
        type(value) in (int, float)
        and abs(value) <= sys.float_info.max  # type: ignore[arg-type]  # of an int of any length
        and accepts(value)  # type: ignore[arg-type]
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_one_of(names: tuple[str, ...]) -> Callable[[object], bool]:
    return lambda value: value in names


def _is_device(value: object) -> bool:
    return isinstance(value, str) and (
        re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?", value) is not None
    )


_ENGINE_NAMES = ("auto", *ENGINES)

_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "dataset": (_is_text, "the name of a data set"),
    "data_dir": (_is_text_or_none, "a folder"),
    "data_url": (_is_text_or_none, "an address"),
    "split": (_is_text, "percentages like 60/20/20"),
    "test_set": (_is_text, "the name of a test part"),
    "init": (_is_text, "the name of an initialisation"),
    "normalize": (_is_one_of(NORMALIZATIONS), f"one of {', '.join(NORMALIZATIONS)}"),
    "augment": (_is_text, "the name of an augmentation"),
    "loader": (_is_one_of(LOADERS), f"one of {', '.join(LOADERS)}"),
    "batch_size": (_is_whole(1), "a whole number of at least 1"),
    "optimizer": (_is_one_of(tuple(OPTIMIZERS)), f"one of {', '.join(OPTIMIZERS)}"),
    "lr": (_is_number(lambda v: v > 0), "a number above 0"),
    "lr_decay": (_is_number(lambda v: v > 0), "a number above 0"),
    "lr_schedule": (_is_one_of(LR_SCHEDULES), f"one of {', '.join(LR_SCHEDULES)}"),
    "momentum": (_is_number(lambda v: 0 <= v < 1), "a number from 0 up to, but not, 1"),
    "nesterov": (_is_flag, "true or false"),
    "weight_decay": (_is_number(lambda v: v >= 0), "a number of at least 0"),
    "grad_average": (_is_flag, "true or false"),
    "precision": (_is_one_of(PRECISIONS), f"one of {', '.join(PRECISIONS)}"),
    "epochs": (_is_whole(1), "a whole number of at least 1"),
    "seed": (_is_whole(0), "a whole number of at least 0"),
    "device": (_is_device, "auto, cpu, cuda or cuda:<number>"),
    "engine": (_is_one_of(_ENGINE_NAMES), f"one of {', '.join(_ENGINE_NAMES)}"),
    "block_steps": (_is_whole(0, MAX_BLOCK_STEPS), f"a whole number from 0 to {MAX_BLOCK_STEPS}"),
    "threads": (_is_whole(0, MAX_THREADS), f"a whole number from 0 to {MAX_THREADS}"),
    "save_every": (_is_whole(1), "a whole number of at least 1"),
}
