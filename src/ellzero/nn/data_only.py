"""Sharded checkpoints read as data: nothing that they hold is run."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

# What the index of a checkpoint is made of; dtypes of torch are allowed besides.
_INDEX = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"),
    "collections": ("OrderedDict",),
}


class UnreadableIndex(BaseException):
    """The index of a checkpoint is not to be had, on any process.

    torch logs other exceptions with their traceback and looks for an index of each process, which
    `save` never writes.
    """


class _IndexReader(pickle._Unpickler):
    """Reader of an index, which refuses every name but those of its own parts."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if name in _INDEX.get(module, ()):
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" and "." not in name else None
        if isinstance(found, torch.dtype):
            return found
        raise UnreadableIndex(f"its index names '{module}.{name}', which is no data")

    def load_build(self) -> None:
        # Attributes are set on instances, never on the classes or functions themselves.
        target: Any = self.stack[-2]  # type: ignore[attr-defined]
        if isinstance(target, type) or callable(target):
            raise UnreadableIndex("its index changes a class, which is no data")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build


class DataReader(FileSystemReader):
    """Reader of a folder that takes the index of the checkpoint as data.

    Parameters
    ----------
    path : str or path
        The folder.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index of the checkpoint.

        Raises
        ------
        UnreadableIndex
            If there is none, it is damaged, or it holds anything but the names, shapes and places
            of data.
        """
        try:
            with open(Path(self.path) / ".metadata", "rb") as file:
                index = _IndexReader(file).load()
            if not isinstance(index, Metadata):
                raise TypeError(type(index).__name__)
        except FileNotFoundError as error:
            raise UnreadableIndex("there is none") from error
        except Exception as error:
            raise UnreadableIndex("its index is damaged") from error
        if getattr(index, "storage_meta", None) is None:
            index.storage_meta = StorageMeta()
        index.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
        return index


class DataPlanner(DefaultLoadPlanner):
    """Planner that takes plain values as data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a plain value in its place.

        Raises
        ------
        pickle.UnpicklingError
            If it cannot be read, or names anything but plain data.
        """
        name = read_item.dest_index.fqn
        try:
            plain = torch.load(value, weights_only=True)
        except Exception as error:
            raise pickle.UnpicklingError(
                f"its value of '{name}' is damaged, or no plain data"
            ) from error
        # torch reads the values once more, without that care: it gets those that were read here.
        again = io.BytesIO()
        torch.save(plain, again)
        again.seek(0)
        super().load_bytes(read_item, again)
