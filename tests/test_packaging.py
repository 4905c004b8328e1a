"""What goes into a release, and what is said about it."""

import re
import tomllib
from pathlib import Path

import ellzero

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def required():
    """Return every package that the project names, with where it is needed."""
    project = PROJECT["project"]
    wanted = {"always": project["dependencies"], **project["optional-dependencies"]}
    found = {}
    for place, lines in wanted.items():
        for line in lines:
            name = re.match(r"[a-z0-9-]+", line)[0]
            if name != "ellzero":
                found.setdefault(name, place)
    return found


def test_the_licence_of_every_dependency_is_listed():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "DEPENDENCIES.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| package")
    ]
    assert {name for name, *_ in rows} == set(required())
    assert all(len(row) == 4 and all(row) for row in rows)


def test_every_dependency_has_a_lower_bound():
    project = PROJECT["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    assert [x for x in lines if not x.startswith("ellzero[") and ">=" not in x] == []


def test_the_citation_names_this_version():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {ellzero.__version__}" in lines


def test_a_source_archive_holds_what_its_tests_read():
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    tracked = {
        path.name
        for path in ROOT.iterdir()
        if not path.name.startswith(".") and path.name not in ("dist", "build", "ellzero-out")
    }
    assert {"src", "tests", "benchmarks", "examples", "pyproject.toml"} <= tracked
    assert {"src", "tests", "benchmarks", "examples", "README.md", "LICENSE"} <= set(included)


def test_types_are_shipped():
    assert (Path(ellzero.__file__).parent / "py.typed").is_file()
