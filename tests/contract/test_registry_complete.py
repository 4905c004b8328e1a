"""Nothing public is forgotten: every class is in the registry, documented and in the changelog."""

import inspect
import re
from pathlib import Path

import pytest

from ellzero import objectives, penalties, sets, solvers
from ellzero.errors import EllzeroError
from tests.registry import REGISTRY, SOLVERS

CHANGELOG = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()


def public_classes():
    out = []
    for module in (solvers, objectives, sets, penalties):
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
        found = [getattr(module, name) for name in names]
        out += [
            c
            for c in found
            if inspect.isclass(c)
            and c.__module__.startswith(module.__name__)
            and not inspect.isabstract(c)
        ]
    return out


every_class = pytest.mark.parametrize("kind", public_classes(), ids=lambda kind: kind.__name__)


def test_the_list_of_public_classes_is_not_empty():
    assert len(public_classes()) >= 30


@every_class
def test_is_in_the_registry(kind):
    entries = [entry for entry in REGISTRY if entry.kind is kind]
    assert len(entries) == 1
    assert entries[0].cases


@every_class
def test_has_an_example_that_uses_it(kind):
    sections = (inspect.getdoc(kind) or "").split("Examples\n--------")
    assert len(sections) == 2
    assert re.search(rf">>> .*\b{kind.__name__}\(", sections[1])


@every_class
def test_is_in_the_changelog(kind):
    # "their group versions" stands for the three group penalties.
    name = (
        kind.__name__.removeprefix("Group")
        if kind.__module__.endswith("penalties")
        else (kind.__name__)
    )
    assert f"`{name}`" in CHANGELOG


@pytest.mark.parametrize("entry", SOLVERS, ids=lambda entry: entry.kind.__name__)
def test_solvers_list_what_they_take_and_refuse(entry):
    assert entry.takes
    assert entry.refuses
    assert not set(entry.takes) & set(entry.refuses)


WRONG = [
    pytest.param(wrong, id=f"{entry.kind.__name__}-{i}")
    for entry in REGISTRY
    for i, wrong in enumerate(entry.wrong)
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_has_its_message(wrong):
    with pytest.raises(EllzeroError) as error:
        wrong.call()
    assert str(error.value) == wrong.text


CASES = [
    pytest.param(make, entry.kind, id=f"{entry.kind.__name__}-{name}")
    for entry in REGISTRY
    for name, make in entry.cases.items()
]


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_cases_are_of_their_class(make, kind):
    assert type(make()) is kind
