"""What the README shows is what happens."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("code", "shown"), list(zip(blocks("python"), blocks("text"), strict=True))
)
def test_the_python_examples_print_what_the_readme_says(code, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == shown


def test_two_commands_set_up_everything_they_need() -> None:
    main, tests = blocks("bash")
    assert main.count("\n") == 1
    assert main.endswith("&& .venv/bin/ellzero train\n")
    assert "-c constraints.txt" in main
    assert tests.splitlines()[-1] == ".venv/bin/python -m pytest -n 2"
    assert '-e ".[dev]" -c constraints.txt' in tests
