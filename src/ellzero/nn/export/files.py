"""Networks in one compressed safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ellzero._version import __version__
from ellzero.errors import IncompatibleError, InvalidParameterError, ModelFileError
from ellzero.nn.export import packing
from ellzero.storage import from_json, read_model_file, to_json, write_atomic
from ellzero.validation import check_choice

FORMAT = "ellzero-network"
SCHEMA_VERSION = 1

_AGAIN = "Copy the file again, or export the model again."
_ORIGIN = "Give a file that `ellzero.nn.export.save` wrote."
_PARTS = ("support", "values", "scale")
_MARK = "#"


def save(
    model: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    values: str = "exact",
) -> int:
    """Write a network as one compressed file; an existing file is replaced in one move.

    Parameters
    ----------
    model : torch.nn.Module or mapping of str to Tensor
        A module, or its state. Tied weights are stored once.
    path : str or path
        Where; the usual extension is ``.safetensors``.
    values : {"exact", "float16", "int8"}, default="exact"
        How to keep the values of tensors of two axes or more: bit for bit, rounded to float16, or
        as int8 with one float32 scale for each index of the first axis. Zeros stay zeros; a
        rounded value may become one.

    Returns
    -------
    int
        Size of the file in bytes.

    Raises
    ------
    InvalidParameterError
        If the state holds something that is not a dense tensor, a value does not fit `values`, or
        the file cannot be written.

    See Also
    --------
    load : Reads the file.

    Notes
    -----
    Each tensor takes the cheapest of three forms: as it is, a bitmap with the nonzero values, or
    the gaps between nonzeros with their values; the last two through zlib where that is shorter.
    Exact values come back bit for bit, but that -0.0 comes back as 0.0. The file is plain
    safetensors with a JSON description, one SHA-256 for each tensor and one for the description;
    nothing in it runs when it is read.

    Examples
    --------
    >>> import pathlib, tempfile, torch
    >>> from ellzero.nn import export
    >>> model = torch.nn.Linear(100, 100)
    >>> _ = model.weight.data.mul_(torch.arange(10_000).reshape(100, 100) % 50 == 0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.safetensors")
    ...     size = export.save(model, path)
    ...     state = export.load(path)
    >>> size < 3000, torch.equal(state["weight"], model.weight)
    (True, True)
    """
    check_choice("values", values, packing.VALUES)
    blob = _pack(_state(model), values)
    write_atomic(path, blob)
    return len(blob)


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Read a network that `save` wrote, and put it into a model where one is given.

    Parameters
    ----------
    path : str or path
        The file.
    model : torch.nn.Module or None, default=None
        Receives the state: the class that was saved, unchanged. Its parameters keep their dtype
        and device. It is left as it was when anything is wrong.

    Returns
    -------
    dict of str to Tensor
        The state, with the keys of ``model.state_dict()``, on the CPU. Tied names share a tensor.

    Raises
    ------
    ModelFileError
        If the file is missing, cut short, damaged, of another kind or of a newer version.
    IncompatibleError
        If `model` has other names or shapes than the file.

    See Also
    --------
    save : Writes the file.
    """
    blob = read_model_file(path)
    state = _unpack(str(path), blob)
    if model is not None:
        _check_fit(str(path), state, model)
        model.load_state_dict(state)
    return state


def _state(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = model.state_dict() if isinstance(model, nn.Module) else dict(model)
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise InvalidParameterError(
                f"`model` must have tensors as its state, got {type(tensor).__name__} as "
                f"{name!r}.",
                "Remove the extra state, or keep it in a file of its own.",
            )
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise InvalidParameterError(
                f"'{name}' must be a dense tensor with data, got layout {tensor.layout} on "
                f"{tensor.device} with dtype {tensor.dtype}.",
                "Export the model before it is converted.",
            )
    return state


def _pack(state: Mapping[str, Tensor], values: str) -> bytes:
    from safetensors.torch import save as to_bytes

    stored: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        memory = (
            tensor.data_ptr(),
            tensor.device,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
        )
        if tensor.numel() and memory in seen:
            tied[name] = seen[memory]
            continue
        seen[memory] = name
        packed = packing.pack(name, tensor, values)
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
        }
        if packed is None:
            plain = tensor.detach().cpu().contiguous().clone()
            if plain.dtype in packing.BITS:
                plain[plain == 0] = 0  # one rule for zeros, packed or not
            content = {name: plain}
        else:
            entry["support"] = packed.support
            entry["values"] = packed.values
            entry["n_nonzero"] = packed.n_nonzero
            entry["compressed"] = list(packed.compressed)
            content = {
                f"{name}{_MARK}{part}": torch.frombuffer(bytearray(data), dtype=torch.uint8)
                if data
                else torch.zeros(0, dtype=torch.uint8)
                for part, data in packed.parts.items()
            }
        entry["sha256"] = _digest(content)
        entries.append(entry)
        for key, part in content.items():
            if key in stored:
                raise InvalidParameterError(
                    f"Two tensors of the model would be stored as '{key}'.", "Rename one of them."
                )
            stored[key] = part
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "ellzero_version": __version__,
        "tensors": entries,
        "order": list(state),
        "tied": tied,
    }
    metadata["checksum"] = _checksum(metadata)
    try:
        return bytes(to_bytes(stored, {"ellzero": to_json(metadata)}))
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        kinds = sorted({str(t.dtype) for t in stored.values()})
        raise InvalidParameterError(
            f"A dtype of the model cannot be stored; it has {', '.join(kinds)}.",
            "Convert the tensors to floats or integers.",
        ) from error


def _unpack(path: str, blob: bytes) -> dict[str, Tensor]:
    metadata = _read_metadata(path, blob)
    stored = _read_tensors(path, blob)
    expected: set[str] = set()
    state: dict[str, Tensor] = {}
    for entry in metadata["tensors"]:
        name = entry["name"]
        keys = [name]
        if "support" in entry:
            parts = [p for p in _PARTS if p != "scale" or entry["values"] == "int8"]
            keys = [f"{name}{_MARK}{part}" for part in parts]
        for key in keys:
            if key not in stored:
                raise ModelFileError(
                    f"'{path}' is damaged: the tensor '{key}' is missing.", _AGAIN
                )
        content = {key: stored[key] for key in keys}
        if _digest(content) != entry["sha256"]:
            raise ModelFileError(
                f"'{path}' is damaged: the tensor '{name}' does not match its checksum.", _AGAIN
            )
        expected.update(keys)
        try:
            state[name] = _decode(entry, content)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError, MemoryError) as error:
            raise ModelFileError(
                f"'{path}' is damaged: the tensor '{name}' cannot be decoded.", _AGAIN
            ) from error
    if extra := sorted(set(stored) - expected):
        raise ModelFileError(
            f"'{path}' is damaged: it holds the tensor '{extra[0]}', which it does not describe.",
            _AGAIN,
        )
    try:
        return {name: state[metadata["tied"].get(name, name)] for name in metadata["order"]}
    except KeyError as error:
        raise ModelFileError(
            f"'{path}' is damaged: the tensor {error} is missing.", _AGAIN
        ) from error


def _decode(entry: Mapping[str, Any], content: Mapping[str, Tensor]) -> Tensor:
    name, shape = entry["name"], tuple(entry["shape"])
    dtype = getattr(torch, entry["dtype"])
    if "support" not in entry:
        tensor = content[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError("shape")
        return tensor
    parts = {
        key.removeprefix(f"{name}{_MARK}"): part.numpy().tobytes() for key, part in content.items()
    }
    packed = packing.Packed(
        entry["support"], entry["values"], entry["n_nonzero"], parts, tuple(entry["compressed"])
    )
    return packing.unpack(packed, shape, dtype)


def _read_metadata(path: str, blob: bytes) -> dict[str, Any]:
    """Return the description of the tensors, its checksum verified."""
    if not blob:
        raise ModelFileError(f"'{path}' is empty.", _AGAIN)
    foreign = ModelFileError(f"'{path}' is not a model file.", _ORIGIN)
    length = struct.unpack("<Q", blob[:8])[0] if len(blob) >= 8 else 0
    if len(blob) < 10 or blob[8:9] != b"{" or length > 100_000_000:
        raise foreign
    cut = ModelFileError(f"'{path}' is cut short: the end of the file is missing.", _AGAIN)
    if 8 + length > len(blob):
        raise cut
    other = ModelFileError(
        f"'{path}' is a safetensors file, but not an exported network.", _ORIGIN
    )
    try:
        header = json.loads(blob[8 : 8 + length])
        ends = [e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"]
        text = header.get("__metadata__", {}).get("ellzero")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise foreign from error
    if any(type(end) is not int for end in ends):
        raise foreign
    if max(ends, default=0) > len(blob) - 8 - length:
        raise cut
    if not isinstance(text, str):
        raise other
    damaged = ModelFileError(f"'{path}' is damaged: its description cannot be read.", _AGAIN)
    try:
        metadata = from_json(text)
    except ValueError as error:
        raise damaged from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise other
    version = metadata.get("schema_version")
    if type(version) is not int:
        raise ModelFileError(f"'{path}' is damaged: it has no format version.", _AGAIN)
    if version != SCHEMA_VERSION:
        age, todo = (
            ("a newer", "Install a newer ellzero.")
            if version > SCHEMA_VERSION
            else ("an older", "Export the model again.")
        )
        raise ModelFileError(
            f"'{path}' has {age} format, version {version}; this ellzero ({__version__}) reads "
            f"version {SCHEMA_VERSION}.",
            todo,
        )
    if metadata.get("checksum") != _checksum(metadata):
        raise ModelFileError(
            f"'{path}' is damaged: its description does not match its checksum.", _AGAIN
        )
    if not _well_formed(metadata):
        raise damaged
    return metadata


def _well_formed(metadata: Mapping[str, Any]) -> bool:
    """Whether the description has the fields and types that are read from it."""
    entries, order, tied = (metadata.get(n) for n in ("tensors", "order", "tied"))
    if not (isinstance(entries, list) and isinstance(order, list) and isinstance(tied, dict)):
        return False
    if not all(isinstance(n, str) for n in [*order, *tied.values()]):
        return False
    for entry in entries:
        if not isinstance(entry, dict):
            return False
        shape, dtype = entry.get("shape"), entry.get("dtype")
        if not (isinstance(entry.get("name"), str) and isinstance(shape, list)):
            return False
        if not isinstance(entry.get("sha256"), str):
            return False
        if any(type(n) is not int or n < 0 for n in shape):
            return False
        if not isinstance(dtype, str) or not isinstance(getattr(torch, dtype, 0), torch.dtype):
            return False
        if "support" in entry:
            compressed = entry.get("compressed")
            if not (
                entry["support"] in packing.SUPPORTS
                and entry.get("values") in packing.VALUES
                and type(entry.get("n_nonzero")) is int
                and isinstance(compressed, list)
                and getattr(torch, dtype) in packing.BITS
            ):
                return False
    return True


def _read_tensors(path: str, blob: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        return dict(from_bytes(blob))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFileError(
            f"'{path}' is damaged: its tensors cannot be read.", _AGAIN
        ) from error


def _digest(content: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of the stored parts of a tensor."""
    total = hashlib.sha256()
    for key in sorted(content):
        part = content[key]
        data = part.contiguous().reshape(-1).view(torch.uint8) if part.numel() else part
        total.update(to_json([key, str(part.dtype), list(part.shape)]).encode())
        total.update(data.numpy().tobytes() if part.numel() else b"")
    return total.hexdigest()


def _checksum(metadata: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in metadata.items() if name != "checksum"}
    return hashlib.sha256(to_json(rest).encode()).hexdigest()


def _check_fit(path: str, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise where the model has other names or shapes, before anything is copied."""
    own = model.state_dict()
    hint = "Build the model as it was when it was saved."
    for name, tensor in own.items():
        if name not in state:
            raise IncompatibleError(f"The model has '{name}', which '{path}' does not hold.", hint)
        if isinstance(tensor, Tensor) and tensor.shape != state[name].shape:
            raise IncompatibleError(
                f"'{name}' has shape {tuple(tensor.shape)} in the model and "
                f"{tuple(state[name].shape)} in '{path}'.",
                hint,
            )
    if extra := [name for name in state if name not in own]:
        raise IncompatibleError(f"'{path}' holds '{extra[0]}', which the model lacks.", hint)
