"""Damage of files and of values, drawn from a number."""

import copy
import json
import math
import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ellzero.errors import EllzeroError

NASTY = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, math.inf,
    -math.inf, math.nan, 1e308, 5e-324, "", "x", "0", "nan", "../../etc/passwd", "x" * 2000,
    "\ud800", "\0", "é\u202e", "%s{}", [], {}, [[]], [None], [1, "a", None], {"a": 1},
    {"": None}, {"__float__": "nan"}, [[1, 2], [3]], "a\nb", ["relu"], {"__float__": 3},
]  # fmt: skip


def fuzz(fast, slow):
    """Run a test over numbers: `fast` of them always, `slow` of them when slow tests are asked."""

    def decorate(body):
        @pytest.mark.parametrize(
            "n_cases", [fast, pytest.param(slow, marks=[pytest.mark.slow, pytest.mark.timeout(0)])]
        )
        def test(n_cases, request, tmp_path):
            @settings(
                max_examples=n_cases,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(st.integers(0, 2**48))
            def one(seed):
                body(random.Random(seed), tmp_path)

            one()

        test.__name__, test.__doc__, test.body = body.__name__, body.__doc__, body
        return test

    return decorate


def _check_words(error, hint):
    text = error.message
    assert "\n" not in text, text
    assert text[-1] in ".?", text
    assert len(text) < 3000, len(text)
    assert not hint or error.hint, text
    assert error.hint is None or "\n" not in error.hint


def attempt(action, *, hint=True, also=()):
    """Return what an action gives, or None where it raises an error that is meant to be read."""
    try:
        return action()
    except EllzeroError as error:
        _check_words(error, hint)
        return None
    except also:
        return None


def damage(rng, blob, times=None):
    """Return bytes with some damage."""
    out = bytearray(blob)
    for _ in range(times or rng.choice([1, 1, 2, 5, 20])):
        kind = rng.randrange(9)
        at = rng.randrange(len(out) + 1)
        # Beginnings hold lengths and headers: they get half of the damage.
        at = min(at, rng.randrange(1, 200)) if rng.random() < 0.5 else at
        if kind == 0 and out:
            at = min(at, len(out) - 1)
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + rng.choice([1, 2, 8, 100])]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.choice([1, 4, 64]))
        elif kind == 4:
            out[at : at + 8] = struct.pack("<q", rng.choice([0, -1, 2**31, 2**40, 2**62, 7]))
        elif kind == 5:
            out[at:at] = out[at : at + rng.choice([1, 10, 200])]
        elif kind == 6:
            digits = [i for i, c in enumerate(out[:4000]) if 48 <= c <= 57]
            if digits:
                i = rng.choice(digits)
                out[i : i + 1] = rng.choice([b"9" * 30, b"-1", b"1e999", b"", b"NaN", b"0"])
        elif kind == 7:
            out[at:at] = rng.choice([b"\xff", b"\0", b'"', b"\n", b",", "é".encode(), b"[" * 3000])
        else:
            out[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**32 - 1, 2**31, 65536]))
    return bytes(out)


def _nodes(value, path=()):
    yield path
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from _nodes(part, (*path, key))


def disturb(rng, value):
    """Return plain values with one or two parts replaced, removed or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 2, 4])):
        paths = [p for p in _nodes(value) if p] if isinstance(value, dict | list) else []
        if not paths:
            return copy.deepcopy(rng.choice(NASTY))
        *way, last = rng.choice(paths)
        place = value
        for key in way:
            place = place[key]
        kind = rng.randrange(6)
        if kind == 0:
            del place[last]
        elif kind == 1 and isinstance(place, list):
            place.insert(last, copy.deepcopy(place[last]))
        elif kind == 2:
            deep = 0
            for _ in range(rng.choice([50, 300])):
                deep = [deep] if rng.random() < 0.5 else {"a": deep}
            place[last] = deep
        elif kind == 3 and isinstance(place[last], int | float):
            place[last] = rng.choice([-place[last], place[last] + 1, float(place[last]), 10**25])
        else:
            place[last] = copy.deepcopy(rng.choice(NASTY))
    return value


def seal(blob, change):
    """Return a safetensors file whose description was changed and sealed anew by `change`."""
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8 : 8 + length])
    data = blob[8 + length :]
    header["__metadata__"]["ellzero"] = change(header["__metadata__"]["ellzero"], header, data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
