"""Arrays from addresses, so that one kernel call takes any number of them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, types  # type: ignore[attr-defined]  # noqa: TID253
from numba.extending import intrinsic, overload  # noqa: TID253


def at(address: int, n: int, kind: Any) -> Any:
    """Return the array of `n` numbers of a type at an address.

    Parameters
    ----------
    address : int
        Where the first number is; the caller keeps the memory alive.
    n : int
        How many there are.
    kind : type
        A numpy type.

    Returns
    -------
    array of shape (n,)
        Shares the memory.
    """
    size = np.dtype(kind).itemsize
    memory = (ctypes.c_char * (int(n) * size)).from_address(int(address)) if n else b""
    return np.frombuffer(memory, kind)


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@overload(at)
def _choose_at(address: Any, n: Any, kind: Any) -> Any:
    def compiled(address: Any, n: Any, kind: Any) -> Any:
        return carray(_pointer(address), (n,), kind)  # type: ignore[call-arg]

    return compiled
