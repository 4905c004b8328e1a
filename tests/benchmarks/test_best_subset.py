"""The benchmark of best subset: the data, the judge, the proofs and the adapters of its peers."""

import dataclasses
import importlib
import io
import itertools
import json

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor
from sklearn.metrics import log_loss

from benchmarks.best_subset import certify, instances, objective, run, table, worker
from benchmarks.best_subset.adapters import greedy

ADAPTERS = run.ADAPTERS


def squares(X, y, weight=None):
    model = LinearRegression().fit(X, y, weight)
    weight = np.ones(len(y)) if weight is None else weight
    return float(weight @ (y - model.predict(X)) ** 2)


def test_an_instance_comes_from_its_name_and_seed():
    one, same, other = (instances.instance("g1", seed) for seed in (3, 3, 4))
    assert np.array_equal(one.X, same.X)
    assert np.array_equal(one.y, same.y)
    assert not np.array_equal(one.X, other.X)
    assert one.X.shape == (100, 40)


def test_neighbors_correlate_as_described():
    X = instances.correlated(np.random.default_rng(0), 20_000, 4, 0.9)
    wanted = 0.9 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    assert np.corrcoef(X.T) == pytest.approx(wanted, abs=0.01)
    assert X.std(0) == pytest.approx(1, abs=0.02)


def test_path_and_validation_use_the_data_of_their_table(monkeypatch):
    seen = []
    monkeypatch.setattr(
        instances, "linear", lambda name, rng, *a, **k: seen.append((rng.random(), k.get("task")))
    )
    for name in ("S2", "S2path", "S2cv"):
        instances.instance(name, 1)
    assert len({value for value, _ in seen}) == 1
    assert [task for _, task in seen] == [None, "path", "cv"]


@pytest.mark.parametrize("name", ["g1", "weights"])
def test_least_squares_is_judged_as_by_scikit_learn(name):
    given = instances.instance(name, 0)
    support = [3, 1, 7, 30]
    wanted = squares(given.X[:, support], given.y, given.weight)
    assert objective.value(given, support, 8) == pytest.approx(wanted, rel=1e-10)


def test_the_judge_counts_the_ridge_as_ellzero_does():
    given = dataclasses.replace(instances.tiny("squares"), ridge=0.3)
    support = [0, 4]
    X, y = given.X[:, support], given.y
    Z = X - X.mean(0)
    beta = np.linalg.solve(Z.T @ Z + 60 * 0.3 * np.eye(2), Z.T @ y)
    wanted = np.sum((y - y.mean() - Z @ beta) ** 2) + 60 * 0.3 * beta @ beta
    assert objective.value(given, support, 3) == pytest.approx(wanted, rel=1e-10)


def test_logistic_and_poisson_are_judged_as_by_scikit_learn():
    given = instances.tiny("logistic")
    support = [0, 4, 11]
    X = given.X[:, support]
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, given.y)
    wanted = log_loss(given.y, model.predict_proba(X), normalize=False)
    assert objective.value(given, support, 3) == pytest.approx(wanted, rel=1e-7)
    given = instances.tiny("poisson")
    model = PoissonRegressor(alpha=0, tol=1e-10, max_iter=1000).fit(X, given.y)
    mean = model.predict(X)
    wanted = -scipy.stats.poisson.logpmf(given.y, mean).sum()
    assert objective.value(given, support, 3) == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize(
    ("support", "message"),
    [([1, 2, 3, 4], "4 chosen, 3 asked for"), ([1, 1], "repeated"), ([1, 30], "out of range")],
)
def test_the_judge_rejects_what_is_no_answer(support, message):
    with pytest.raises(objective.Rejected, match=message):
        objective.value(instances.tiny("squares"), support, 3)


def test_groups_are_counted_as_groups():
    given = dataclasses.replace(instances.tiny("squares"), groups=np.arange(30) % 10)
    assert objective.count(given, [0, 10, 20, 3]) == 2


def test_optima_are_proved_as_by_enumeration():
    rng = np.random.default_rng(1)
    for _ in range(10):
        given = instances.linear("small", rng, 30, 12, 4, 0.7, 1)
        value, support, nodes = certify.certify(given)
        wanted = min(
            squares(given.X[:, list(c)], given.y) for c in itertools.combinations(range(12), 4)
        )
        assert nodes > 0
        assert value == pytest.approx(wanted, rel=1e-9)
        assert squares(given.X[:, support], given.y) == pytest.approx(wanted, rel=1e-9)


def test_exploration_finds_what_is_proved_from_a_bad_start():
    given = instances.instance("g1", 2)  # where exchanges from a greedy start fail
    value, support = certify.explore(given, [range(8)], 0.5)
    assert value == pytest.approx(certify.certify(given)[0], rel=1e-9)
    assert squares(given.X[:, support], given.y) == pytest.approx(value, rel=1e-9)


def test_an_unfinished_proof_says_so():
    assert certify.certify(instances.instance("g1", 0), max_nodes=5)[2] < 0


@pytest.mark.parametrize("loss", ["squares", "logistic", "poisson"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_answers_what_was_asked(name, loss):
    adapter = importlib.import_module(f"benchmarks.best_subset.adapters.{name}")
    for module in adapter.MODULES:
        pytest.importorskip(module, exc_type=ImportError)
    if loss not in adapter.LOSSES or "fit" not in adapter.TASKS:
        pytest.skip("nothing that this peer fits")
    given = instances.tiny(loss)
    everything = objective.value(given, range(30), 30)
    nothing = objective.value(given, [], 0)
    only = getattr(adapter, "ONLY", {})
    for label, setting in adapter.SETTINGS.items():
        if "fit" not in only.get(label, ("fit",)):
            continue
        ((budget, support),) = adapter.solve(given, **setting).items()
        assert budget == 3
        value = objective.value(given, support, 3)
        assert everything < value < nothing


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_instances_reach_a_worker_unchanged(tmp_path, form):
    given = dataclasses.replace(instances.instance("weights", 0), ridge=0.5, task="path")
    if form == "sparse":
        given = dataclasses.replace(given, X=scipy.sparse.csc_matrix(given.X.round()))
    worker.save(given, tmp_path / "it.npz")
    got = worker.load(tmp_path / "it.npz")
    dense = [x.toarray() if form == "sparse" else x for x in (given.X, got.X)]
    assert np.array_equal(*dense)
    assert np.array_equal(given.weight, got.weight)
    assert got.groups is None
    assert (got.name, got.ridge, got.task, got.budgets) == ("weights-0", 0.5, "path", (10,))


def test_a_worker_answers_and_survives_errors(tmp_path):
    worker.save(instances.tiny("squares"), tmp_path / "it.npz")
    ask = [
        {"path": str(tmp_path / "absent.npz"), "setting": "OMP"},
        {"path": str(tmp_path / "it.npz"), "setting": "OMP"},
    ]
    answers = io.StringIO()
    worker.serve("greedy", [json.dumps(a) for a in ask], answers)
    hello, failed, got = map(json.loads, answers.getvalue().splitlines())
    assert hello["missing"] is None
    assert failed["error"].startswith("FileNotFoundError")
    assert len(got["answer"]["3"]) == 3
    assert got["seconds"] > 0
    assert "first_call_seconds" in got


def test_a_worker_says_that_its_peer_is_absent(monkeypatch):
    monkeypatch.setattr(greedy, "MODULES", ("no_such_package",))
    answers = io.StringIO()
    worker.serve("greedy", [], answers)
    assert "no_such_package" in json.loads(answers.getvalue())["missing"]


def cell(value, seconds, used=3):
    return {"budgets": {"3": {"value": value, "used": used}}, "median": seconds}


def test_the_table_tells_every_loss():
    methods = {"ours: default": cell(10.0, 2.0), "peer: a": cell(10.0, 1.0), "b": cell(11.0, 0.1)}
    report = {"table": "t", "instances": {"t-0": {"methods": methods}}}
    assert table.verdicts(report) == (
        {"instances": 1, "as good": 1, "fastest": 0},
        ["t-0: peer: a is as good and 2.00 times as fast as ours: default"],
    )
    methods["b"] = cell(9.9, 0.1)
    counts, losses = table.verdicts(report)
    assert counts["as good"] == 0
    assert losses[0] == "t-0 k=3: ours: default is 1.0101 % above b"
    methods["ours: default"] = cell(9.9, 0.05)
    assert table.verdicts(report) == ({"instances": 1, "as good": 1, "fastest": 1}, [])
    report["instances"]["t-0"]["known"] = {"3": 9.0}
    assert table.best_known(report["instances"]["t-0"]) == {"3": 9.0}
    assert table.summary(report)["b"]["excess"] == {"t-0, k=3": pytest.approx(0.1)}


def test_results_have_one_line_for_each_method():
    methods = {"a": cell(1.0, 2.0), "b": cell(3.0, 4.0)}
    report = {"table": "t", "instances": {"t-0": {"known": {"3": 1.0}, "methods": methods}}}
    text = table.compact(report)
    assert json.loads(text) == report
    assert len(text.splitlines()) == 6


def test_a_table_is_measured_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run.SEEDS, "g1", (0,))
    monkeypatch.setattr(run, "ADAPTERS", ("greedy",))
    command = ["run", "g1", "--results", str(tmp_path), "--repeats", "2"]
    monkeypatch.setattr("sys.argv", command)
    run.main()
    out = tmp_path / "best_subset_g1.json"
    first = json.loads(out.read_text())
    cells = first["instances"]["g1-0"]["methods"]
    assert set(cells) == {f"greedy: {setting}" for setting in greedy.SETTINGS}
    assert len(cells) >= 3
    assert cells["greedy: OMP"]["repeats"] == 2
    assert cells["greedy: OMP"]["budgets"]["8"]["used"] == 8
    assert "greedy: lasso path" in capsys.readouterr().out
    run.main()  # nothing is lacking
    assert json.loads(out.read_text())["instances"] == first["instances"]
    monkeypatch.setattr("sys.argv", [*command, "--again", "greedy: lasso"])
    run.main()
    again = json.loads(out.read_text())["instances"]["g1-0"]["methods"]
    assert again["greedy: OMP"] == cells["greedy: OMP"]
    assert again["greedy: lasso path"] != cells["greedy: lasso path"]
