"""Parts of an experiment in a folder: one for each arm and seed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ellzero.errors import DataError, InvalidParameterError
from ellzero.nn.tickets.results import Run
from ellzero.storage import from_json, to_json, write_atomic

_SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class Part:
    """What one arm leaves of one seed: its runs, and tensors that other arms build on."""

    runs: tuple[Run, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, without it."""
        return {
            n.removeprefix(prefix + "/"): t
            for n, t in self.tensors.items()
            if n.startswith(prefix + "/")
        }


class Folder:
    """Parts that are whole or absent.

    Parameters
    ----------
    path : str, path or None
        The folder, made when missing; None keeps nothing.
    settings : mapping
        What all parts must have in common, as plain values.

    Raises
    ------
    InvalidParameterError
        If the folder holds an experiment with other settings, or cannot be made.
    DataError
        If the settings that it holds cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidParameterError(
                f"`folder` cannot be made: '{path}' ({error.strerror}).", "Choose another one."
            ) from error
        wanted = from_json(to_json(settings))
        place = self.path / _SETTINGS
        if not place.exists():
            write_atomic(place, to_json(settings))
            return
        try:
            found = dict(from_json(place.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"The settings of the experiment in '{path}' cannot be read.",
                "Give another folder, or delete this one.",
            ) from error
        for key, value in wanted.items():
            if found.get(key) != value:
                raise InvalidParameterError(
                    f"`folder` holds an experiment with {key} {found.get(key)}, this one has "
                    f"{value}.",
                    "Give the same settings to resume it, or another folder.",
                )

    def read(self, arm: str, seed: int) -> Part | None:
        """Return a part, or None when it is not there."""
        if self.path is None:
            return None
        place = self.path / f"{arm}-{seed}.safetensors"
        if not place.exists():
            return None
        try:
            with safetensors.safe_open(place, "pt") as file:
                tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
                runs = tuple(Run(**r) for r in from_json(file.metadata()["runs"]))
        except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"'{place}' is damaged.", "Delete it; the experiment makes it again."
            ) from error
        return Part(runs, tensors)

    def write(self, arm: str, seed: int, part: Part) -> None:
        """Keep a part."""
        if self.path is None:
            return
        tensors = {n: t.detach().cpu().contiguous() for n, t in part.tensors.items()}
        data = safetensors.torch.save(tensors, {"runs": to_json([r.to_dict() for r in part.runs])})
        write_atomic(self.path / f"{arm}-{seed}.safetensors", data)
