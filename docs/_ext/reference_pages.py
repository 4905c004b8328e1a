"""The reference: one table of all public names, one page for each module, one for each name."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ellzero.errors import EllzeroError

# Public modules in the order of the reference. Those without `__all__` are listed with the names
# that are meant for users.
MODULES: dict[str, tuple[str, ...] | None] = {
    "ellzero": None,
    "ellzero.estimators": None,
    "ellzero.objectives": None,
    "ellzero.sets": None,
    "ellzero.penalties": None,
    "ellzero.solvers": None,
    "ellzero.certificates": None,
    "ellzero.smoothness": ("SmoothnessEstimate",),
    "ellzero.nn": None,
    "ellzero.nn.schedules": (
        "AbstractSchedule", "Constant", "Phases", "Ramp", "constant", "phases", "ramp",
    ),
    "ellzero.nn.export": None,
    "ellzero.nn.checkpoints": ("load", "save"),
    "ellzero.nn.callbacks": None,
    "ellzero.nn.tickets": None,
    "ellzero.signal": None,
    "ellzero.sensing": None,
    "ellzero.sensing.maps": ("convolution", "cosines", "rows", "side_by_side", "wavelets"),
    "ellzero.relu": None,
    "ellzero.language": None,
    "ellzero.backprop": None,
    "ellzero.geometry": None,
    "ellzero.models": ("SavedModel", "load_model", "predict", "predict_proba", "save_model", "scores"),
    "ellzero.datasets": None,
    "ellzero.report": None,
    "ellzero.papers": ("EXPERIMENTS", "Experiment", "find_experiment"),
    "ellzero.subset.exact": ("prove",),
    "ellzero.subset.glm": ("search_glm",),
    "ellzero.subset.shaped": ("search_shaped",),
    "ellzero.errors": (
        "DataError", "DeprecatedWarning", "EllzeroError", "IncompatibleError",
        "InvalidParameterError", "ModelFileError", "NonFiniteError", "NotConvergedError",
        "SeparableError",
    ),
}  # fmt: skip
SKIPPED = {"__version__", "callbacks", "checkpoints", "export", "schedules", "tickets"}


@dataclass(frozen=True)
class Name:
    """One public name: where it is documented, and its one line."""

    module: str
    name: str
    target: object
    meaning: str

    @property
    def dotted(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}"

    @property
    def page(self) -> str:
        """File of its page; two names that differ in case only stay apart everywhere."""
        mark = "_" if self.name[0].islower() and inspect.isfunction(self.target) else ""
        return f"{self.dotted}{mark}"


def first_sentence(target: object) -> str:
    """Return the first line of a docstring."""
    text = inspect.getdoc(target) or ""
    return " ".join(text.strip().split("\n\n")[0].split())


def constant_comment(module: ModuleType, name: str) -> str:
    """Return the comment above a constant, or what kind of thing it is."""
    source = inspect.getsource(module)
    found = re.search(rf"((?:^# .*\n)+){name}\b", source, flags=re.MULTILINE)
    if found:
        return " ".join(line.lstrip("# ") for line in found.group(1).strip().split("\n"))
    value = getattr(module, name)
    return (
        f"A constant: {type(value).__name__} of {len(value)}."
        if hasattr(value, "__len__")
        else f"A constant: `{value!r}`."
    )


def names_of(module_name: str) -> list[str]:
    """Return the public names of a module."""
    listed = MODULES[module_name]
    if listed is not None:
        return list(listed)
    return sorted(set(importlib.import_module(module_name).__all__) - SKIPPED, key=str.lower)


class Missing:
    """Something that needs an optional package which is not here."""

    def __init__(self, meaning: str) -> None:
        self.__doc__ = meaning


def read(module: ModuleType, name: str) -> object:
    """Return a public object, or what its source says where an optional package is missing."""
    try:
        return getattr(module, name)
    except EllzeroError:
        for path in Path(str(module.__file__)).parent.glob("*.py"):
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return Missing(ast.get_docstring(node) or "")
        raise


def public_names() -> list[Name]:
    """Return every public name once, where it is imported from at its shortest."""
    out, seen = [], set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in names_of(module_name):
            target = read(module, name)
            described = inspect.isclass(target) or callable(target)
            if isinstance(target, Missing):
                out.append(Name(module_name, name, target, first_sentence(target)))
                continue
            if described and id(target) in seen:
                continue
            if described:
                seen.add(id(target))
            meaning = first_sentence(target) if described else constant_comment(module, name)
            out.append(Name(module_name, name, target, meaning))
    return out


def _page(item: Name) -> str:
    title = item.dotted
    lines = [title, "=" * len(title), "", f".. currentmodule:: {item.module}", ""]
    target = item.target
    if isinstance(target, Missing):
        lines += [
            f".. class:: {item.name}",
            "",
            f"   {item.meaning}",
            "",
            "   The full page needs the optional package in the environment that builds it.",
        ]
    elif inspect.isclass(target):
        lines += [
            f".. autoclass:: {item.name}",
            "   :members:",
            "   :inherited-members: Module, Optimizer, BaseEstimator, int, tuple, Exception, Enum, IntEnum, FutureWarning, ABC, Generic, dict, Mapping, Sequence",
            "   :exclude-members: set_fit_request, set_score_request, set_predict_request, set_transform_request, get_metadata_routing, mro, with_traceback, add_note",
        ]
        if issubclass(target, enum.Enum):
            lines.append("   :undoc-members:")
    elif inspect.isroutine(target):
        lines.append(f".. autofunction:: {item.name}")
    else:
        lines += [f".. data:: {item.name}", "", f"   {item.meaning}"]
    return "\n".join(lines) + "\n"


def _section(module_name: str, items: list[Name]) -> str:
    module = importlib.import_module(module_name)
    lines = [module_name, "=" * len(module_name), ""]
    doc = (inspect.getdoc(module) or "").strip()
    lines += [doc, ""]
    if items:
        lines += [".. list-table::", "   :widths: 32 68", ""]
        for item in items:
            lines += [f"   * - :doc:`{item.name} <../api/{item.page}>`", f"     - {item.meaning}"]
        lines += ["", ".. toctree::", "   :hidden:", ""]
        lines += [f"   {item.name} <../api/{item.page}>" for item in items]
    elsewhere = [
        name for name in names_of(module_name) if name not in {item.name for item in items}
    ]
    if elsewhere:
        lines += ["", "Also here: " + ", ".join(f"`{name}`" for name in elsewhere) + "."]
    return "\n".join(lines) + "\n"


def write(out: Path) -> None:
    """Write the pages, and the table of all names."""
    names = public_names()
    for folder in ("api", "reference"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    wanted = {}
    for item in names:
        wanted[out / "api" / f"{item.page}.rst"] = _page(item)
    for module_name in MODULES:
        items = [item for item in names if item.module == module_name]
        wanted[out / "reference" / f"{module_name}.rst"] = _section(module_name, items)
    rows = [".. list-table::", "   :widths: 40 60", "   :header-rows: 1", "",
            "   * - name", "     - meaning"]  # fmt: skip
    for item in sorted(names, key=lambda item: (item.name.lower(), item.module)):
        rows += [
            f"   * - :doc:`{item.dotted} </generated/api/{item.page}>`",
            f"     - {item.meaning}",
        ]
    wanted[out / "names.inc"] = "\n".join(rows) + "\n"
    rows = [".. list-table::", "   :widths: 32 68", ""]
    for module_name in MODULES:
        meaning = first_sentence(importlib.import_module(module_name))
        rows += [f"   * - :doc:`{module_name} </generated/reference/{module_name}>`"]
        rows += [f"     - {meaning}"]
    wanted[out / "modules.inc"] = "\n".join(rows) + "\n"
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for folder in ("api", "reference"):
        for path in (out / folder).iterdir():
            if path not in wanted:
                path.unlink()
