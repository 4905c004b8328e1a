"""The import rule, the rules of numerics that can be read off the code, and completeness."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ellzero"
LEVELS = {
    "_version": 0,
    "typing": 0,
    "errors": 0,
    "validation": 0,
    "storage": 0,
    "tensors": 1,
    "kernels": 1,
    "core": 2,
    "objectives": 3,
    "sets": 3,
    "penalties": 3,
    "smoothness": 3,
    "geometry": 3,
    "datasets": 3,
    "certificates": 4,
    "solvers": 4,
    "subset": 4,
    "solving": 5,
    "estimators": 6,
    "fitting": 6,
    "models": 6,
    "sensing": 6,
    "relu": 6,
    "report": 6,
    "signal": 6,
    "training": 6,
    "backprop": 6,
    "language": 6,
    "nn": 6,
    "papers": 7,
    "cli": 7,
    "__main__": 8,
}
# Same level, allowed: training builds on saved models; the command line lists the experiments.
SIDEWAYS = {
    ("training", "models"),
    ("fitting", "models"),
    ("relu", "models"),
    ("fitting", "estimators"),
    ("training", "nn"),
    ("language", "nn"),
    ("cli", "papers"),
    ("solvers", "sets"),
    ("geometry", "objectives"),
    ("solvers", "subset"),
    ("tensors", "kernels"),
    ("validation", "errors"),
    ("storage", "errors"),
}
HOMES = {
    "numba": {"kernels"},
    "sklearn": {"datasets", "estimators", "fitting", "relu", "signal"},
    "matplotlib": {"estimators"},
    "pandas": {"estimators", "signal"},
    "polars": {"estimators"},
    "typer": {"cli"},
    "cvxpy": {"relu", "signal"},
    "clarabel": {"signal", "relu"},
    "rich": {"cli", "report"},
    "jinja2": {"report"},
    "pyarrow": {"datasets", "estimators"},
    "lightning": {"nn"},
    "transformers": {"language", "nn"},
    "accelerate": {"nn"},
    "onnx": {"nn"},
    "onnxruntime": {"nn"},
    "onnxscript": {"nn"},
}
CONVERSIONS = {"item", "tolist", "numpy", "cpu"}
CORE = {"core", "objectives", "sets", "penalties", "smoothness", "certificates", "solvers"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_imports_point_downward() -> None:
    wrong = []
    for path in modules():
        here = place(path)
        if here == "__init__":
            continue
        for name in imports(ast.parse(path.read_text())):
            parts = name.split(".")
            if parts[0] != "ellzero" or len(parts) < 2 or parts[1] == here:
                continue
            there = parts[1] if parts[1] in LEVELS else None
            if there is None:
                wrong.append(f"{path.name} imports {name} from the package itself")
            elif LEVELS[there] >= LEVELS[here] and (here, there) not in SIDEWAYS:
                wrong.append(f"{path.relative_to(SOURCE)} ({LEVELS[here]}) imports {name}")
    assert wrong == []


def test_every_module_has_a_level() -> None:
    assert {place(p) for p in modules()} - {"__init__"} == set(LEVELS)


@pytest.mark.parametrize("package", sorted(HOMES))
def test_a_package_stays_in_its_home(package: str) -> None:
    users = {
        place(path)
        for path in modules()
        for name in imports(ast.parse(path.read_text()))
        if name.split(".")[0] == package
    }
    assert users <= HOMES[package]


def test_only_tensors_make_python_numbers() -> None:
    wrong = []
    for path in modules():
        if place(path) not in CORE or path.name == "curvature.py":
            continue
        wrong += [
            f"{path.relative_to(SOURCE)}:{node.lineno} .{node.func.attr}()"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in CONVERSIONS
        ]
    assert wrong == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, ellzero; "
        "print([m for m in ('torch', 'numpy', 'numba', 'sklearn', 'typer') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_help_loads_neither_torch_nor_rich() -> None:
    code = (
        "import sys\nfrom ellzero import cli\nsys.argv = ['ellzero', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'sklearn', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("[]")


def test_public_names_resolve() -> None:
    import ellzero

    for name in ellzero.__all__:
        assert getattr(ellzero, name) is not None


def test_solve_stays_a_function_after_its_module_is_imported() -> None:
    import ellzero
    import ellzero.solving

    assert callable(ellzero.solve)
