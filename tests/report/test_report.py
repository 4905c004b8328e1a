import hashlib
import io
import json
import math
import re
from base64 import b64encode
from html.parser import HTMLParser

import pytest

from ellzero.core.result import Certificate, Check, Claim
from ellzero.errors import InvalidParameterError
from ellzero.report import print_summary, summary_line, to_html, to_json, to_markdown
from ellzero.report.schema import CLAIMS
from ellzero.report.words import number
from tests.report import samples

SAMPLES = {
    "iris": samples.iris,
    "hostile": samples.hostile,
    "unknown": samples.unknown,
    "wide": samples.wide,
    "network": samples.network,
    "empty": dict,
}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements of a page with their attributes and text; unbalanced tags fail."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.stack, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [t for t, _ in self.stack]))
        if tag not in VOID:
            self.stack.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [t for t, _ in self.stack]))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        if not self.stack or self.stack[-1][0] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag):
        return [a for t, a, _ in self.elements if t == tag]


@pytest.fixture(scope="module", params=SAMPLES)
def page(request):
    return Page(to_html(SAMPLES[request.param]()))


def test_ids_are_unique_and_links_have_targets(page):
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in ids


def test_nothing_is_loaded(page):
    for _, attributes, _ in page.elements:
        for key in ("src", "href", "xlink:href", "action", "style", "srcset"):
            value = attributes.get(key) or ""
            assert value == "" or value.startswith("#") or value == "data:,"
    policy = next(a for a in page.all("meta") if "http-equiv" in a)["content"]
    assert "default-src 'none'" in policy


def test_every_picture_has_words_and_a_table(page):
    kinds = [t for t, _, _ in page.elements]
    for i, kind in enumerate(kinds):
        if kind == "svg":
            assert kinds[i + 1] == "title"
            assert page.elements[i][1]["aria-label"]
    tables = [p for t, _, p in page.elements if t == "table" and "figure" in p]
    assert len(tables) == kinds.count("figure")
    assert all("details" in p for p in tables)


def test_rows_are_as_long_as_their_head(page):
    lengths, head = [], 0
    for tag, _, _ in page.elements:
        if tag == "table":
            head = 0
        elif tag == "th":
            head += 1
        elif tag == "tr":
            lengths.append([0, 0])
        if tag == "td":
            lengths[-1][0] += 1
            lengths[-1][1] = head
    assert all(cells == columns for cells, columns in lengths if cells)


def test_page_says_what_it_is(page):
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert len(page.all("main")) == 1
    assert page.all("title")


def test_every_section_is_present():
    ids = [a.get("id") for a in Page(to_html(samples.iris())).all("section")]
    assert ids == [
        "data", "path", "weights", "certificate", "reference", "escape", "more", "trace",
        "supports", "smoothness", "settings", "versions",
    ]  # fmt: skip


@pytest.mark.parametrize("key", [k for k in samples.iris() if k != "schema_version"])
def test_every_key_may_be_missing_or_alone(key):
    full = samples.iris()
    Page(to_html({key: full[key]}))
    for empty in (None, type(full[key])()):
        Page(to_html({key: empty}))


@pytest.mark.parametrize("key", ["dense", "path", "weights", "certificate"])
def test_the_others_do_without(key):
    Page(to_html({**samples.iris(), key: None}))


def test_hostile_words_are_shown_not_run():
    text = to_html(samples.hostile())
    page = Page(text)
    assert len(page.all("script")) == 1
    assert "<script>alert(1)" in "".join(page.text)
    assert "\x1b" not in text


def test_script_is_the_one_the_policy_allows():
    text = to_html({})
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in text
    assert len(script.encode()) <= 2048


def test_iris_is_small():
    summary = samples.iris()
    del summary["escape"], summary["figures"], summary["tables"]
    assert len(to_html(summary).encode()) < 200_000


def test_the_answer_is_in_the_first_lines():
    line = "5 of 15 parameters, train loss 0.3082, proven globally optimal (gap 8.1e-07)"
    assert summary_line(samples.iris()) == line
    page = Page(to_html(samples.iris()))
    words = [t.strip() for t in page.text if t.strip()]
    assert line in words[:5]
    assert to_markdown(samples.iris()).splitlines()[2] == line


def test_words_never_claim_more_than_the_claim():
    certificate = {"claim": None, "sentence": "proven globally optimal"}
    assert "optimal" not in summary_line({"certificate": certificate})
    certificate["sentence"] = "not inside the budget"
    assert summary_line({"certificate": certificate}) == "not inside the budget"


def test_claims_are_those_of_the_library():
    assert {c.name.lower(): c.sentence for c in Claim} == CLAIMS
    assert list(CLAIMS) == [c.name.lower() for c in sorted(Claim)]


def test_certificate_of_the_library_is_drawn():
    certificate = Certificate(
        Claim.STATIONARY,
        (Check("count", 5, 5), Check("residual", math.nan, 1e-6, Claim.GAP)),
        ("the data are exact",),
        measures={"margin": 0.25},
    )
    page = Page(to_html({"certificate": certificate.to_dict()}))
    states = [a["class"] for t, a, p in page.elements if t == "li" and p[-1] == "ol"]
    assert states == ["reached", "reached", "open", "open", "open"]
    words = " ".join(page.text)
    assert "✓ pass" in words
    assert "✗ fail" in words
    assert "the data are exact" in words


def test_unknown_numbers_are_dashes():
    page = Page(to_html(samples.unknown()))
    words = "".join(page.text).lower()
    assert not re.search(r"\bnan\b|\bnone\b", words)
    assert "–" in words


def test_schema_version_is_checked():
    with pytest.raises(InvalidParameterError) as info:
        to_html({"schema_version": 2})
    assert str(info.value) == (
        "`schema_version` must be 1, got 2.\n"
        "hint: Make the report with the version of ellzero that wrote the summary."
    )
    with pytest.raises(InvalidParameterError, match="`summary` must be a mapping, got list"):
        to_markdown([])
    with pytest.raises(InvalidParameterError, match=r"Unknown figure 'bar'. Did you mean 'bars'"):
        to_html({"figures": [{"kind": "bar"}]})


def _cells(line):
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


@pytest.mark.parametrize("name", SAMPLES)
def test_markdown_tables_are_well_formed(name):
    text = to_markdown(SAMPLES[name]())
    width = None
    for line in text.splitlines():
        if line.startswith("|"):
            width = width or len(_cells(line))
            assert len(_cells(line)) == width
        else:
            width = None
    # A fenced block shows its text as it is.
    assert "<script" not in re.sub(r"^(```+)\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "\x1b" not in text
    assert not re.search(r"\bnan\b|\bNone\b", text)


def test_markdown_holds_the_numbers():
    text = to_markdown(samples.iris())
    assert (
        "| **5** | 0.3082 | 0.1714 | 95.8% | 96.7% | 4.0% | 4.280 | 0.3082 | 8.1e-07 | optimal |"
        in text
    )
    assert "- [x] optimal: proven globally optimal" in text
    assert "ellzero train iris --n-nonzero 1:15" in text


def test_json_is_strict_and_complete():
    def refuse(word):
        raise AssertionError(word)

    summary = {**samples.iris(), "extra": [math.nan, math.inf]}
    back = json.loads(to_json(summary), parse_constant=refuse)
    assert back["schema_version"] == 1
    assert back["extra"] == [None, "inf"]
    assert back["path"] == samples.iris()["path"]
    assert to_html(back) == to_html(summary)


def _printed(summary, width, **options):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    print_summary(summary, console)
    return console.file.getvalue()


def test_terminal_fits_80_columns():
    text = _printed(samples.iris(), 80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.endswith(("optimal    ", "optimal", "within a gap"))]
    assert len([r for r in lines if re.match(r">?\s+\d+\s+0\.\d+\s+\S+\s+[\d.]+%", r)]) == 15
    assert rows
    assert "…" not in text
    assert re.search(r"^> +5 +0.3082 +0.1714 +95.8% +96.7% +8.1e-07 +optimal", text, re.MULTILINE)
    assert re.search(r"^coef\[setosa, petal length\] +-1.447$", text, re.MULTILINE)
    assert "Certificate: proven globally optimal" in text
    assert re.search(r"^relative gap +8.1e-07 +<= +1.0e-06 +✓ pass", text, re.MULTILINE)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_terminal_never_overflows_or_obeys_markup(name, width):
    text = _printed(SAMPLES[name](), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_no_color_is_obeyed(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = _printed(samples.iris(), 80, force_terminal=True, color_system="standard")
    assert "\x1b[32m" in colored
    monkeypatch.setenv("NO_COLOR", "1")
    plain = _printed(samples.iris(), 80, force_terminal=True, color_system="standard")
    assert not re.search(r"\x1b\[(?:\d+;)*3[0-7]m", plain)


def test_every_section_of_a_network_is_present():
    page = Page(to_html(samples.network()))
    ids = [a.get("id") for a in page.all("section")]
    assert ids == ["path", "layers", "file", "training"]
    text = " ".join(page.text)
    assert "2662 of 266,200 weights, train loss 0.06120" in text
    # One budget makes no curve over budgets.
    assert "Loss by number of nonzero parameters" not in text


@pytest.mark.parametrize("key", samples.network())
def test_every_key_of_a_network_may_be_missing_or_alone(key):
    full = samples.network()
    for given in (full[key], None, type(full[key])()):
        Page(to_html({key: given}))
    Page(to_html({**full, key: None}))


@pytest.mark.parametrize("part", ["name", "steps", "loss", "lr", "n_nonzero", "epochs"])
def test_curves_of_a_network_may_be_missing(part):
    full = samples.network()
    for run in full["training"]["runs"]:
        del run[part]
    page = to_html(full)
    Page(page)
    assert ("Learning rate by step" in page) == (part not in ("steps", "loss", "lr"))
    Page(to_html({**full, "training": {"runs": full["training"]["runs"]}}))


@pytest.mark.parametrize("part", samples.network()["layers"][0])
def test_parts_of_a_layer_may_be_missing(part):
    full = samples.network()
    for row in full["layers"]:
        row.pop(part, None)
    Page(to_html(full))


def test_the_numbers_of_a_network_are_behind_its_figures():
    full = samples.network()
    text = to_markdown(full)
    first, last = full["training"]["runs"][0], -1
    row = f"| {first['steps'][last]} | {number(first['loss'][last])} |"
    assert row in text
    assert "| 0.weight | 300 x 784 |" in text
    assert "- Smaller by: 71.1 x" in text
    assert "- Compressed: 15 kB" in text
    assert "- Every entry stored: 1.07 MB" in text
    assert "| 8 | 3752 | 0.09750 | 97.8% | 48.80 |" in text


def test_scores_of_numbers_are_called_what_they_are():
    rows = [{"n_nonzero": k, "accuracy_train": 0.4 + k / 10} for k in (1, 2)]
    page = to_html({"path": rows, "data": {"task": "regression"}})
    assert "R2 by number of nonzero parameters" in page
    assert "Accuracy" not in page
    assert "Accuracy by number of nonzero parameters" in to_html({"path": rows})
