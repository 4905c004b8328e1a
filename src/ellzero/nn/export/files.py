"""Networks in one compressed safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero._version import __version__
from ellzero.errors import IncompatibleError, InvalidParameterError, ModelFileError
from ellzero.nn.export import packing
from ellzero.nn.export.quantized import QuantizedWeight
from ellzero.nn.tables import aligned
from ellzero.storage import from_json, read_model_file, to_json, write_atomic
from ellzero.validation import check_choice

FORMAT = "ellzero-network"
# What is written: 1 as long as nothing is quantized, so that older readers can read it.
SCHEMA_VERSION = 2
_PLAIN_VERSION = 1

_AGAIN = "Copy the file again, or export the model again."
_ORIGIN = "Give a file that `ellzero.nn.export.save` wrote."
_SCALED = ("int8", packing.LEVELS)
_MARK = "#"
_UNDECODED = (
    IncompatibleError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    RuntimeError,
    MemoryError,
)


def save(
    model: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    values: str = "exact",
    quantized: Mapping[str, QuantizedWeight] | None = None,
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
    quantized : mapping of str to QuantizedWeight or None, default=None
        Weights that are on few levels, by their names in the state, as `compress` returns them:
        their codes are written, whatever `values` says, and come back as the same numbers.

    Returns
    -------
    int
        Size of the file in bytes.

    Raises
    ------
    InvalidParameterError
        If the state holds something that is not a dense tensor, a value does not fit `values`,
        `quantized` is not what the state holds, or the file cannot be written.

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
    state = _state(model)
    check_quantized(state, quantized or {})
    blob = _pack(state, values, quantized or {})
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


def quantized_weights(path: str | os.PathLike[str]) -> dict[str, QuantizedWeight]:
    """Return the codes of the quantized weights in a file that `save` wrote.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    dict of str to QuantizedWeight
        By name; empty where nothing was quantized.

    Raises
    ------
    ModelFileError
        If the file is missing, cut short, damaged, of another kind or of a newer version.

    See Also
    --------
    load : Returns the numbers.
    """
    blob = read_model_file(path)
    found = _unpack(str(path), blob, codes=True)
    return {name: part for name, part in found.items() if isinstance(part, QuantizedWeight)}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What one tensor takes in a file.

    Parameters
    ----------
    name : str
        Its name.
    shape : tuple of int
        Its shape.
    n_nonzero : int or None
        Nonzeros that are stored; None where the tensor is stored as it is.
    form : str
        "plain", or how positions and values are told, such as "bitmap, 4 bits".
    n_bytes, plain_bytes : int
        Bytes in the file, and as it is.
    """

    name: str
    shape: tuple[int, ...]
    n_nonzero: int | None
    form: str
    n_bytes: int
    plain_bytes: int


def sizes(path: str | os.PathLike[str]) -> tuple[StoredTensor, ...]:
    """Return what each tensor takes in a file that `save` wrote.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    tuple of StoredTensor
        In the order of the model; tied tensors once.

    Raises
    ------
    ModelFileError
        If the file is missing, cut short, damaged, of another kind or of a newer version.
    """
    blob = read_model_file(path)
    metadata = _read_metadata(str(path), blob)
    stored = _read_tensors(str(path), blob)
    lines = []
    for entry in metadata["tensors"]:
        held = [
            part
            for key, part in stored.items()
            if key == entry["name"] or key.rpartition(_MARK)[0] == entry["name"]
        ]
        form = "plain"
        if "support" in entry:
            values = entry["values"]
            values = f"{entry['n_bits']} bits" if values == packing.LEVELS else values
            form = f"{entry['support']}, {values}"
        shape = tuple(entry["shape"])
        lines.append(
            StoredTensor(
                entry["name"],
                shape,
                entry.get("n_nonzero"),
                form,
                sum(part.numel() * part.element_size() for part in held),
                math.prod(shape) * getattr(torch, entry["dtype"]).itemsize,
            )
        )
    return tuple(lines)


def sizes_table(path: str | os.PathLike[str]) -> str:
    """Return a table of what each tensor takes in a file that `save` wrote.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    str
        One line for each tensor, and the sum.

    Raises
    ------
    ModelFileError
        If the file is missing, cut short, damaged, of another kind or of a newer version.

    Examples
    --------
    >>> import pathlib, tempfile, torch
    >>> from ellzero.nn import export
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.safetensors")
    ...     _ = export.save(torch.nn.Linear(64, 64, bias=False).double(), path)
    ...     print(export.sizes_table(path).splitlines()[-1].split())
    ['sum', '32.0', '32.0']
    """
    lines = sizes(path)
    rows = [["tensor", "shape", "nonzero", "form", "plain KiB", "file KiB"]]
    rows += [
        [
            line.name,
            "x".join(map(str, line.shape)) or "-",
            "-" if line.n_nonzero is None else str(line.n_nonzero),
            line.form,
            f"{line.plain_bytes / 1024:.1f}",
            f"{line.n_bytes / 1024:.1f}",
        ]
        for line in lines
    ]
    plain = sum(line.plain_bytes for line in lines) / 1024
    now = sum(line.n_bytes for line in lines) / 1024
    rows.append(["sum", "", "", "", f"{plain:.1f}", f"{now:.1f}"])
    return "\n".join(aligned(rows, left=(0, 3)))


def check_quantized(state: Mapping[str, Tensor], quantized: Mapping[str, QuantizedWeight]) -> None:
    """Raise where codes are not those of the state."""
    for name, weight in quantized.items():
        if name not in state:
            raise InvalidParameterError(
                f"`quantized` has '{name}', which is not in the model.",
                "Give the names of the model's state.",
            )
        tensor = state[name]
        same = tensor.dtype == weight.dtype and tuple(tensor.shape) == weight.shape
        if not same or not torch.equal(tensor.detach().cpu(), weight.dequantize().cpu()):
            raise InvalidParameterError(
                f"'{name}' is not what its codes in `quantized` say; it was changed since.",
                "Quantize it again, or leave it out of `quantized`.",
            )


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


def _pack(
    state: Mapping[str, Tensor], values: str, quantized: Mapping[str, QuantizedWeight]
) -> bytes:
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
        levels = quantized.get(name)
        if levels is None:
            packed = packing.pack(name, tensor, values)
        else:
            packed = packing.pack_levels(levels)
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
            if levels is not None:
                entry["n_bits"] = levels.n_bits
                entry["group_size"] = levels.group_size
                entry["transposed"] = levels.transposed
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
        "schema_version": SCHEMA_VERSION if quantized else _PLAIN_VERSION,
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


def _unpack(path: str, blob: bytes, codes: bool = False) -> dict[str, Any]:
    """Return the state, with the codes of quantized weights where they are asked for."""
    metadata = _read_metadata(path, blob)
    stored = _read_tensors(path, blob)
    expected: set[str] = set()
    state: dict[str, Any] = {}
    for entry in metadata["tensors"]:
        name = entry["name"]
        keys = [name]
        if "support" in entry:
            parts = ["support", "values"]
            parts += ["scale"] if entry["values"] in _SCALED else []
            parts += ["zero"] if entry["values"] == packing.LEVELS else []
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
            state[name] = _decode(entry, content, codes)
        except (
            IncompatibleError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            RuntimeError,
            MemoryError,
        ) as error:
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


def _decode(
    entry: Mapping[str, Any], content: Mapping[str, Tensor], codes: bool
) -> Tensor | QuantizedWeight:
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
    if entry["values"] != packing.LEVELS:
        return packing.unpack(packed, shape, dtype)
    n_rows, n_inputs = shape[::-1] if entry["transposed"] else shape
    levels = packing.unpack_levels(
        packed,
        (n_rows, n_inputs),
        entry["n_bits"],
        entry["group_size"],
        dtype,
        entry["transposed"],
    )
    return levels if codes else levels.dequantize()


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
    if version not in (_PLAIN_VERSION, SCHEMA_VERSION):
        age, todo = (
            ("a newer", "Install a newer ellzero.")
            if version > SCHEMA_VERSION
            else ("an older", "Export the model again.")
        )
        raise ModelFileError(
            f"'{path}' has {age} format, version {version}; this ellzero ({__version__}) reads "
            f"versions {_PLAIN_VERSION} and {SCHEMA_VERSION}.",
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
                and entry.get("values") in (*packing.VALUES, packing.LEVELS)
                and type(entry.get("n_nonzero")) is int
                and isinstance(compressed, list)
                and getattr(torch, dtype) in packing.BITS
            ):
                return False
            if entry["values"] == packing.LEVELS and not (
                type(entry.get("n_bits")) is int
                and type(entry.get("group_size")) is int
                and type(entry.get("transposed")) is bool
                and len(shape) == 2
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
