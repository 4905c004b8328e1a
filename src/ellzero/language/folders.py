"""Folders of transformers: read, calibrated from a text file, written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from ellzero.errors import DataError, InvalidParameterError
from ellzero.nn.export import load

# Room asked for beside the new weights and the finished layers: tokenizer, report.
SPARE = 64 << 20
LENGTH = 256
# The whole model in one file of ours, quantized weights as codes.
COMPACT = "compact.safetensors"
BATCH = 32
# Never code that a folder brings along: without a word transformers would ask for it.
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def check_room(
    model: Path,
    out: Path,
    checkpoint: Path | None = None,
    *,
    distill: bool = False,
    compact: bool = False,
) -> None:
    """Raise when the folder is no model, or a disk has no room for what a run writes.

    Parameters
    ----------
    model : Path
        Folder of the model.
    out : Path
        Folder of the result; it need not exist.
    checkpoint : Path or None, default=None
        Folder of the finished layers, perhaps on another disk; None means beside the result.
    distill : bool, default=False
        Whether a training keeps its state there too: weights and two averages of each.
    compact : bool, default=False
        Whether the result has a compact file beside the weights.

    Raises
    ------
    DataError
        If `model` has no configuration or no weights.
    InvalidParameterError
        If a disk is too full for the new weights and the layers kept on the way.
    """
    if not (model / "config.json").is_file():
        raise DataError(
            f"The folder '{model}' is no model of transformers: it has no config.json.",
            "Give a folder written by `save_pretrained`.",
        )
    files = [path for kind in ("*.safetensors", "*.bin") for path in model.glob(kind)]
    size = sum(path.stat().st_size for path in files)
    if not size:
        raise DataError(
            f"The folder '{model}' has no weights.", "Give a folder written by `save_pretrained`."
        )
    kept = out if checkpoint is None else checkpoint
    written = (2 if compact else 1) * size + SPARE
    needs = [(out, written), (kept, (4 if distill else 1) * size)]
    disks: dict[int, list[tuple[Path, int]]] = {}
    for folder, needed in needs:
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        disks.setdefault(place.stat().st_dev, []).append((place, needed))
    for parts in disks.values():
        free = shutil.disk_usage(parts[0][0]).free
        needed = sum(part for _, part in parts)
        if free < needed:
            folder = out if parts[0][1] == written else kept
            raise InvalidParameterError(
                f"'{folder}' needs {needed >> 20} MB, and its disk has {free >> 20} MB.",
                "Make room, or name a folder on another disk.",
            )


def load_folder(folder: Path) -> tuple[nn.Module, Any]:
    """Return the model and the tokenizer of a folder; nothing is downloaded.

    Raises
    ------
    DataError
        If transformers is missing or cannot read the folder.
    """
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
        kind = _kind(transformers, config)
        model = kind.from_pretrained(folder, **LOCAL)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
    except Exception as error:
        raise _unreadable(folder, error) from error
    return model.eval(), tokenizer


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise DataError(
            "Language models need transformers, which is not installed.",
            "Install it with `pip install 'ellzero[language]'`.",
        ) from error
    return transformers


def _kind(transformers: Any, config: Any) -> Any:
    """Return the class of a model."""
    names = config.architectures or ()
    return next((getattr(transformers, n, None) for n in names), None) or transformers.AutoModel


def _unreadable(folder: Path, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    return DataError(
        f"transformers cannot read the folder '{folder}': {reason}.",
        "Give a folder that holds a model and its tokenizer.",
    )


def text_batches(tokenizer: Any, path: Path, max_texts: int) -> list[dict[str, Any]]:
    """Return tokenized batches of the lines of a text file.

    Raises
    ------
    DataError
        If the file cannot be read or has no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The calibration file '{path}' cannot be read: {error}.",
            "Give a text file in UTF-8, one text a line.",
        ) from error
    texts = [line for line in lines if line.strip()][:max_texts]
    if not texts:
        raise DataError(f"The calibration file '{path}' has no text.", "Write one text a line.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        return [
            dict(
                tokenizer(
                    texts[i : i + BATCH],
                    padding=True,
                    truncation=True,
                    max_length=min(LENGTH, tokenizer.model_max_length),
                    return_tensors="pt",
                )
            )
            for i in range(0, len(texts), BATCH)
        ]
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        raise DataError(
            f"The tokenizer cannot take the texts of '{path}': {why}.",
            "Give a model whose tokenizer has a padding or an end token.",
        ) from error


def load_compact(folder: Path) -> tuple[nn.Module, Any]:
    """Return the model and the tokenizer of a folder from its compact file alone.

    Parameters
    ----------
    folder : Path
        What ``ellzero compress --quantize`` wrote; its ``model.safetensors`` is not needed.

    Returns
    -------
    model : nn.Module
        In evaluation mode, with exactly the weights that were written.
    tokenizer : object
        Of transformers.

    Raises
    ------
    DataError
        If transformers is missing or cannot read the folder.
    ModelFileError
        If the compact file is missing or damaged.
    """
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
        kind = _kind(transformers, config)
        model = kind._from_config(config) if hasattr(kind, "_from_config") else None
        if model is None:
            model = kind.from_config(config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
    except Exception as error:
        raise _unreadable(folder, error) from error
    state = load(folder / COMPACT)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model = model.to(dtypes.pop())
    load(folder / COMPACT, model)
    return model.eval(), tokenizer


def save_folder(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write the model and its tokenizer.

    Raises
    ------
    InvalidParameterError
        If they cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InvalidParameterError(
            f"The compressed model cannot be written: {why.rstrip('. ')}.",
            "Make room, and give the same command again: it goes on after the kept layers.",
        ) from error
