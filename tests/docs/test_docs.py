"""The site says what happens: its code runs, its names exist, its numbers come from files."""

import ast
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if not {"_build", "generated", "gallery"} & set(path.relative_to(DOCS).parts)
)
GALLERY = sorted((ROOT / "examples" / "gallery").glob("*.py"))
WITH_CODE = [path for path in PAGES if "```python\n" in path.read_text(encoding="utf-8")]
BLOCK = re.compile(
    r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE
)
COMMAND = re.compile(r"^```sh\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def generators():
    """Give the modules that write pages."""
    sys.path[:0] = [str(DOCS / "_ext"), str(ROOT)]
    import benchmark_pages
    import paper_pages
    import reference_pages

    yield {"benchmarks": benchmark_pages, "papers": paper_pages, "reference": reference_pages}
    del sys.path[:2]


@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_prints_what_stands_below_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "page"}
    for code, shown in BLOCK.findall(path.read_text(encoding="utf-8")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, path.name, "exec"), scope)
        assert printed.getvalue() == shown


def test_every_tutorial_and_most_answers_have_code():
    named = {path.parent.name + "/" + path.stem for path in WITH_CODE}
    assert {"tutorials/first_fit", "tutorials/sparse_network", "tutorials/sparse_signal"} <= named
    assert {
        "tutorials/compress_encoder",
        "howto/read_a_certificate",
        "howto/add_a_solver",
    } <= named


def command_lines():
    for path in PAGES:
        for block in COMMAND.findall(path.read_text(encoding="utf-8")):
            for line in block.splitlines():
                if line.startswith("ellzero "):
                    yield path, line


@pytest.mark.parametrize(
    ("path", "line"), [pytest.param(p, x, id=x[:60]) for p, x in command_lines()]
)
def test_commands_have_the_options_that_pages_give_them(path, line):
    import typer.main

    from ellzero.cli import app
    from ellzero.papers import find_experiment

    words = shlex.split(line)[1:]
    if words[0].startswith("-"):
        return
    command = typer.main.get_command(app).commands[words[0]]
    # Parsing alone: nothing is run and no file is read.
    context = command.make_context(words[0], words[1:], resilient_parsing=True)
    assert not context.args
    known = {option for param in command.params for option in [*param.opts, *param.secondary_opts]}
    given = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
    assert given <= known
    if words[0] == "reproduce":
        assert find_experiment(words[1]).name == words[1]


@pytest.mark.parametrize("path", GALLERY, ids=name_of)
def test_scripts_of_the_gallery_state_their_message_and_end_with_what_is_certified(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    title, rule, empty, *message = ast.get_docstring(tree, clean=True).splitlines()
    assert set(rule) == {"="}
    assert len(rule) == len(title)
    assert empty == ""
    assert message[0]
    assert text.rstrip().splitlines()[-1].lstrip().startswith(("print(", "break", "sorted("))
    assert "certificate" in text or "claim" in text or "lower_bound" in text
    imported = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("ellzero")
        for alias in node.names
    }
    for module, name in imported:
        assert hasattr(__import__(module, fromlist=[name]), name)


def test_the_order_of_the_gallery_has_every_script_once(generators):
    from gallery_order import ORDER

    assert sorted(f"plot_{name}.py" for name in ORDER) == [path.name for path in GALLERY]


def test_the_reference_has_every_public_name(generators, tmp_path):
    import importlib

    reference = generators["reference"]
    names = reference.public_names()
    reference.write(tmp_path)
    table = (tmp_path / "names.inc").read_text(encoding="utf-8")
    documented = {name.name for name in names}
    for module_name, listed in reference.MODULES.items():
        module = importlib.import_module(module_name)
        wanted = set(listed or module.__all__) - reference.SKIPPED
        assert wanted <= documented, module_name
    for name in names:
        assert f"<{'/generated/api/'}{name.page}>" in table
        assert (tmp_path / "api" / f"{name.page}.rst").exists()
        assert name.meaning, name.dotted
    pages = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    for module_name in reference.MODULES:
        assert f"generated/reference/{module_name}\n" in pages


def test_public_modules_are_in_the_reference(generators):
    # A package with `__all__` is public, but for what serves the command line.
    known = set(generators["reference"].MODULES) | {
        "ellzero.cli",
        "ellzero.fitting",
        "ellzero.training",
    }
    for path in (ROOT / "src" / "ellzero").rglob("__init__.py"):
        module = ".".join(("ellzero", *path.relative_to(ROOT / "src" / "ellzero").parent.parts))
        if re.search(r"^__all__ =", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            assert module in known, module


def test_every_experiment_has_a_page_and_shows_its_committed_run(generators, tmp_path):
    from ellzero.papers import EXPERIMENTS

    papers = generators["papers"]
    papers.write(tmp_path)
    contents = (tmp_path / "papers.inc").read_text(encoding="utf-8")
    for experiment in EXPERIMENTS:
        written = DOCS / "papers" / f"{experiment.name}.md"
        page = written if written.exists() else tmp_path / "papers" / f"{experiment.name}.md"
        text = page.read_text(encoding="utf-8")
        assert re.search(
            rf"^(/generated/papers/)?{experiment.name}$", contents, flags=re.MULTILINE
        )
        assert re.search(r"\d{4}\.\d{4,5}", experiment.paper).group() in text
        assert f"ellzero reproduce {experiment.name}" in text
        run = papers.RESULTS / f"{experiment.name}.json"
        if not run.exists():
            assert page != written
            continue
        assert f"generated/papers/{experiment.name}.inc" in text or page != written
        summary = json.loads(run.read_text(encoding="utf-8"))
        assert summary["command"].startswith(f"ellzero reproduce {experiment.name}")
        shown = papers.numbers(experiment.name)
        assert summary["command"] in shown
        assert len(shown) > 1000
        assert "/" not in summary["command"]


def test_a_new_experiment_gets_a_page_from_its_module(generators):
    from ellzero.papers import Experiment

    made = Experiment("new", "A title", "A paper, arXiv:2404.18414", "ellzero.papers.iht_iris")
    page = generators["papers"].plain_page(made)
    assert page.startswith("# A title\n\nA paper, arXiv:2404.18414\n\nIris under every budget")
    assert "No run is kept here yet; `ellzero reproduce new` shows the numbers." in page


def test_pages_of_papers_have_no_numbers_of_their_own():
    # Results stand in the generated part; in the prose only identifiers, formulas and years may.
    for path in (DOCS / "papers").glob("*.md"):
        prose = re.sub(
            r"\$\$.*?\$\$|\$.*?\$|`.*?`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        assert not re.search(r"\d\.\d+e[-+]?\d|\b0\.\d{2,}", prose), path.name


def test_benchmarks_show_every_result_and_its_command(generators):
    pages = generators["benchmarks"]
    text = pages.page()
    results = sorted(path.stem for path in pages.RESULTS.glob("*.json"))
    for name in results:
        assert f"benchmarks/results/{name}.json" in text.replace("\\", ""), name
    assert "**loss**" in text
    for name, command in pages.COMMANDS.items():
        assert name in results
        words = command.split()
        script = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, command


def test_a_loss_is_shown_where_a_peer_is_better(generators):
    pages = generators["benchmarks"]
    cell = {"budgets": {"1": {"value": 1.0, "used": 1}}, "median": 1.0}
    faster = {"budgets": {"1": {"value": 1.0, "used": 1}}, "median": 0.5}
    better = {"budgets": {"1": {"value": 0.5, "used": 1}}, "median": 2.0}
    report = {
        "instances": {
            "a-0": {"methods": {"ours: default": cell, "peer: x": faster, "peer: y": better}}
        }
    }
    _, losses = pages.subset_table.verdicts(report)
    shown = pages.loss_list(losses)
    assert shown.count("**loss**") == 2
    assert "2.00 times as fast" in shown
    assert pages.loss_list([]) == "No loss in this table.\n"


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=name_of)
def test_links_and_included_files_exist(path):
    text = path.read_text(encoding="utf-8")
    code = re.sub(
        r"^```(?:python|text|sh|bash)\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE
    )
    targets = re.findall(r"(?<!\!)\[[^\]]*\]\(([^)#\s]+)", code, flags=re.DOTALL)
    targets += re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", code, flags=re.DOTALL)
    targets += re.findall(r"\{include\} (\S+)", code)
    for target in targets:
        if target.startswith("http") or "generated/" in target:
            continue
        if "gallery/" in target and target.endswith(".rst"):
            script = ROOT / "examples" / "gallery" / (Path(target).stem + ".py")
            assert script.exists() or Path(target).stem == "index", target
            continue
        assert (path.parent / target).exists(), target


def test_the_first_picture_shows_what_the_first_command_found():
    found = json.loads((DOCS / "first_command.json").read_text(encoding="utf-8"))
    assert all(row["claim"] == "optimal" and row["gap"] < 1e-6 for row in found["path"])
    chosen = next(row for row in found["path"] if row["selected"])
    said = f"{100 * chosen['accuracy_test']:.1f}"
    for name in ("README.md", "docs/index.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "_static/first_command.svg" in text
        assert set(re.findall(r"(\d+\.\d) %", text)) <= {said}
    assert chosen["n_nonzero"] == 5
    assert len(found["path"]) == 15


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx_gallery")
    flags = ["-W", "--keep-going", "-n", "-q"]
    run = subprocess.run(
        [sys.executable, "-m", "sphinx", *flags, str(DOCS), str(tmp_path / "html")],
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    for page in (
        "index",
        "benchmarks",
        "reference/index",
        "gallery/plot_first_fit",
        "papers/rvsm",
    ):
        assert "<h1>" in (tmp_path / "html" / f"{page}.html").read_text(encoding="utf-8")
