"""What is done of a report, kept in files so that a stopped command goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmlp.report.experiments import Outcome
from fastmlp.training.checkpoint import torch_bytes
from fastmlp.utils.files import write_bytes, write_text


@dataclass(frozen=True)
class StudyPart:
    """What came of all networks of a study with one seed, and in how many seconds."""

    seconds: float
    outcomes: dict[str, Outcome]
    parameters: dict[str, Tensor] | None = None
    """The best ones of the network, where they are wanted later: a ``state_dict``."""


class StudyCache:
    """The files in ``folder``, which is made when the first is saved.

    ``key`` is all that decides what a part holds. It is in the file's name as a hash, so that parts
    made with other settings or data stay beside each other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, study: str, seed: int, key: Mapping[str, Any]) -> StudyPart | None:
        """What was saved with the same key; None where nothing was or it is damaged."""
        path = self._path(study, seed, key)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            outcomes = {k: Outcome.from_dict(v) for k, v in values["outcomes"].items()}
            parameters = None
            if values["has_parameters"]:
                parameters = torch.load(path.with_suffix(".pt"), weights_only=True)
            return StudyPart(float(values["seconds"]), outcomes, parameters)
        except Exception:  # torch's unpickler raises any; the part is done again
            return None

    def save(self, study: str, seed: int, key: Mapping[str, Any], part: StudyPart) -> None:
        """Writes a part; raises OSError where it cannot be written."""
        path = self._path(study, seed, key)
        if part.parameters is not None:  # first, so that the JSON file says that all is there
            write_bytes(path.with_suffix(".pt"), torch_bytes(part.parameters))
        values = {
            "seconds": part.seconds,
            "has_parameters": part.parameters is not None,
            "outcomes": {name: outcome.to_dict() for name, outcome in part.outcomes.items()},
            "key": key,
        }
        write_text(path, json.dumps(values) + "\n")

    def _path(self, study: str, seed: int, key: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{study}-seed{seed}-{digest}.json"
