"""Grids and graphs with cycles: against every support, lines, trees, and truthful when stopped."""

from dataclasses import replace

import numpy as np
import pytest

from ellzero.core.result import Claim, Status
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.signal import SparseSmooth, denoise
from ellzero.signal.certificate_graph import certify_mesh
from ellzero.signal.decomposition import Decomposition
from ellzero.signal.graph import Mesh, blocks_of, parts_of
from ellzero.signal.grid import solve_mesh
from ellzero.signal.proof import Multipliers
from tests.signal.enumeration import by_budget, costs_of, laplacian, masks, smooth_values

CLOSE = 1e-11


def grid_edges(shape):
    number = np.arange(shape[0] * shape[1]).reshape(shape)
    first = np.concatenate([number[:, :-1].ravel(), number[:-1].ravel()])
    second = np.concatenate([number[:, 1:].ravel(), number[1:].ravel()])
    return first, second


def image(shape, seed=0, *, signed=False, noise=0.5):
    rng = np.random.default_rng(seed)
    x = np.zeros(shape)
    for _ in range(shape[0] * shape[1] // 500 + 1):
        side = rng.integers(3, 9)
        i, j = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        x[i : i + side, j : j + side] = 2.0 * (rng.choice([-1, 1]) if signed else 1)
    y = x + noise * rng.standard_normal(shape)
    return y if signed else np.maximum(y, 0.0)


def mesh_of(y, smoothness, *, nonnegative=False):
    first, second = grid_edges(y.shape)
    weights = np.full(first.size, smoothness)
    return Mesh(y.ravel(), np.ones(y.size), first, second, weights, nonnegative, None, y.shape)


def random_graph(rng, *, grid):
    """Return samples with their shape, edges with their weights, and how to ask for the graph."""
    if grid:
        shape = (int(rng.integers(2, 4)), int(rng.integers(2, 5)))
        first, second = grid_edges(shape)
        graph = "grid"
    else:
        n = int(rng.integers(3, 11))
        shape = (n,)
        first, second = np.nonzero(np.triu(rng.random((n, n)) < rng.choice([0.3, 0.6]), 1))
        graph = np.column_stack([first, second])
    n = int(np.prod(shape))
    y = rng.standard_normal(n) * rng.choice([0.1, 1.0, 3.0])
    kind = rng.integers(3)
    if kind == 0:
        y = np.abs(y)
    elif kind == 1:
        y = np.round(2 * y) / 2
    if rng.random() < 0.2:
        y[1:][rng.random(n - 1) < 0.3] = np.nan
    smoothness = rng.uniform(0, 1, first.size) * rng.choice([0.1, 1.0, 10.0])
    if rng.random() < 0.2:
        smoothness[rng.random(first.size) < 0.3] = 0.0
    return y, shape, first, second, smoothness, graph


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("grid", [True, False])
def test_against_every_support(seed, grid):
    rng = np.random.default_rng(seed)
    optimal = 0
    for _ in range(40):
        y, shape, first, second, smoothness, graph = random_graph(rng, grid=grid)
        nonnegative = bool(rng.random() < 0.5)
        w, data = np.where(np.isnan(y), 0.0, 1.0), np.nan_to_num(y)
        n = y.size
        matrix = laplacian(n, first, second, smoothness)
        values = smooth_values(data, w, matrix, nonnegative)
        scale = max((w * data**2).sum(), 1e-3)
        if rng.random() < 0.5:
            price = rng.choice([0.0, 0.05, 0.3, 1.0])
            given, best = {"penalty": price}, (values + costs_of(np.full(n, price))).min()
        else:
            k = int(rng.integers(0, n + 1))
            given, best = {"n_nonzero": k}, by_budget(values)[k]
        est = SparseSmooth(smoothness, nonnegative=nonnegative, graph=graph, **given)
        est.fit(y.reshape(shape))
        assert est.signal_.shape == shape
        assert est.lower_bound_ - best <= CLOSE * scale
        assert best - est.value_ <= CLOSE * scale
        x = est.signal_.ravel()
        anew = (w * (x - data) ** 2).sum() + x @ matrix @ x
        anew += given.get("penalty", 0.0) * np.count_nonzero(x)
        assert est.value_ == pytest.approx(anew, rel=1e-11, abs=1e-11 * scale)
        assert est.support_.size <= given.get("n_nonzero", n)
        assert not nonnegative or (x >= 0).all()
        certificate = est.certificate_
        assert certificate.holds
        if certificate.lower_bound is not None:
            assert certificate.lower_bound - best <= CLOSE * scale
        if certificate.claim is Claim.OPTIMAL:
            optimal += 1
            assert est.value_ - best <= CLOSE * scale
        if est.solution_.proof is not None and est.solution_.status is Status.CONVERGED:
            assert est.value_ - best <= CLOSE * scale
    # Penalized grids all close; budgets between two envelope points need not.
    assert optimal >= (30 if grid else 12)


def test_known_zeros_and_ones_against_every_support():
    rng = np.random.default_rng(7)
    for _ in range(20):
        shape = (3, 3)
        y = rng.standard_normal(shape) * 2
        kinds = rng.choice([-1, 0, 1, 1, 1], 9)
        zeros, ones = np.flatnonzero(kinds < 0), np.flatnonzero(kinds == 0)
        first, second = grid_edges(shape)
        nonnegative = bool(rng.random() < 0.5)
        matrix = laplacian(9, first, second, np.ones(first.size))
        values = smooth_values(y.ravel(), np.ones(9), matrix, nonnegative)
        on = masks(9)
        values[(on & (kinds < 0)).any(axis=1)] = np.inf
        count = (on & (kinds > 0)).sum(axis=1)
        fixed = {"known_zeros": zeros, "known_ones": ones, "nonnegative": nonnegative}
        est = SparseSmooth(1.0, penalty=0.5, graph="grid", **fixed).fit(y)
        best = (values + 0.5 * count).min()
        assert est.value_ >= best - CLOSE * 10
        assert est.lower_bound_ <= best + CLOSE * 10
        if est.gap_ == 0:
            assert est.value_ == pytest.approx(best, rel=CLOSE)
        k = int(rng.integers(0, (kinds > 0).sum() + 1))
        est = SparseSmooth(1.0, n_nonzero=k + ones.size, graph="grid", **fixed).fit(y)
        best = values[count <= k].min()
        assert est.lower_bound_ <= best + CLOSE * 10
        assert est.value_ >= best - CLOSE * 10
        assert (est.signal_.ravel()[zeros] == 0).all()


def test_a_chain_as_a_mesh_is_the_chain():
    rng = np.random.default_rng(0)
    for signed in (False, True):
        y = rng.standard_normal(60) + np.repeat([0, 3, 0, 0, 2, 0], 10)
        y = y if signed else np.abs(y)
        here = np.arange(59)
        exact = SparseSmooth(2.0, penalty=1.0).fit(y)
        weights = np.full(59, 2.0)
        found = solve_mesh(Mesh(y, np.ones(60), here, here + 1, weights), price=1.0)
        assert found.value == pytest.approx(exact.value_, rel=CLOSE)
        assert found.lower_bound == pytest.approx(exact.value_, rel=1e-9)


def test_a_tree_as_a_mesh_is_the_tree():
    rng = np.random.default_rng(1)
    for signed in (False, True):
        y = rng.standard_normal(50) * 2
        y = y if signed else np.abs(y)
        parents = np.array([rng.integers(0, k) for k in range(1, 50)])
        edges = np.column_stack([parents, np.arange(1, 50)])
        exact = SparseSmooth(1.0, penalty=1.0, graph=edges).fit(y)
        found = solve_mesh(Mesh(y, np.ones(50), edges[:, 0], edges[:, 1], np.ones(49)), price=1.0)
        assert found.value == pytest.approx(exact.value_, rel=CLOSE)
        # One spanning forest holds all edges: the decomposition is the program itself.
        assert found.lower_bound == pytest.approx(exact.value_, rel=1e-9)


@pytest.mark.parametrize("smoothness", [0.1, 1.0, 5.0])
def test_an_image_at_or_above_zero_is_proven_optimal(smoothness):
    y = image((100, 100))
    est = SparseSmooth(smoothness, penalty=0.5, graph="grid").fit(y)
    assert est.solution_.status is Status.CONVERGED
    assert est.gap_ <= 1e-11
    assert est.certificate_.claim is Claim.OPTIMAL
    # Another way to a bound, which must be below: rows and columns with multipliers.
    mesh = mesh_of(y, smoothness)
    problem = Decomposition(mesh, parts_of(mesh), 0.5, None)
    problem.start_at(est.signal_.ravel())
    problem.ascend(lambda found: est.value_, most=30, tol=0.0, stop=lambda: False)
    assert 0.998 * est.value_ <= problem.bound <= est.value_ * (1 + 1e-12)


@pytest.mark.parametrize("given", [{"penalty": 0.5}, {"n_nonzero": 80}])
def test_an_image_of_both_signs_has_a_small_gap(given):
    y = image((36, 36), signed=True)
    est = SparseSmooth(1.0, graph="grid", **given).fit(y)
    assert est.gap_ <= 1e-2
    assert est.certificate_.claim >= Claim.GAP
    assert est.certificate_.gap == pytest.approx(est.gap_, abs=1e-8)


def test_missing_pixels_are_filled_from_their_neighbors():
    y = image((20, 20), signed=True)
    y[::3, ::4] = np.nan
    est = SparseSmooth(2.0, penalty=0.3, graph="grid").fit(y)
    assert np.isfinite(est.signal_).all()
    assert est.gap_ <= 1e-2
    assert est.certificate_.claim >= Claim.GAP


def test_scaling_of_an_image():
    y = image((12, 12))
    one = SparseSmooth(1.0, penalty=0.5, graph="grid").fit(y)
    two = SparseSmooth(1.0, penalty=0.5 * 64.0, graph="grid").fit(8.0 * y)
    assert two.value_ == pytest.approx(64.0 * one.value_, rel=1e-13)
    assert (two.support_ == one.support_).all()


def test_the_sign_of_the_data_does_not_matter_when_free():
    y = image((12, 12), signed=True)
    one = SparseSmooth(1.0, penalty=0.4, graph="grid").fit(y)
    two = SparseSmooth(1.0, penalty=0.4, graph="grid").fit(-y)
    assert two.value_ == pytest.approx(one.value_, rel=1e-5)
    assert two.lower_bound_ <= one.value_
    assert one.lower_bound_ <= two.value_


def test_supports_of_images_at_or_above_zero_are_nested():
    y = image((30, 30))
    before = np.ones((30, 30), dtype=bool)
    for price in (0.1, 0.3, 1.0, 3.0):
        on = SparseSmooth(1.0, penalty=price, graph="grid").fit(y).signal_ > 0
        assert not (on & ~before).any()
        before = on


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("given", [{"price": 0.5}, {"budget": 40}])
def test_a_stopped_run_states_a_true_bound(signed, given):
    y = image((24, 24), signed=signed)
    mesh = mesh_of(y, 5.0)
    full = solve_mesh(mesh, **given)
    for most in (1, 3):
        calls = []

        def stop(n, value, bound, calls=calls, most=most):
            calls.append((value, bound))
            return n >= most

        found = solve_mesh(mesh, callback=stop, **given)
        assert found.lower_bound <= full.value * (1 + 1e-12)
        assert full.lower_bound <= found.value * (1 + 1e-12)
        assert len(calls) <= most
        if found.status is not Status.CONVERGED:
            assert found.status is Status.INTERRUPTED
    none = solve_mesh(mesh, time_limit=0.0, **given)
    assert none.lower_bound <= full.value * (1 + 1e-12)
    assert none.value >= full.lower_bound * (1 - 1e-12)
    assert none.status in (Status.TIME_LIMIT, Status.CONVERGED)


def test_an_interrupt_returns_the_best_so_far():
    y = image((30, 30), signed=True)

    def interrupt(n, value, bound):
        if n == 3:
            raise KeyboardInterrupt
        return False

    found = solve_mesh(mesh_of(y, 2.0), price=0.3, callback=interrupt)
    assert found.status is Status.INTERRUPTED
    assert 0 < found.lower_bound <= found.value < (y**2).sum()
    est = SparseSmooth(2.0, penalty=0.3, graph="grid").fit(y, callback=interrupt)
    assert est.solution_.status is Status.INTERRUPTED
    assert est.certificate_.claim is Claim.GAP


def test_a_proof_that_is_tampered_with_proves_nothing():
    y = image((20, 20), noise=1.0)
    mesh = mesh_of(y, 1.0)
    found = solve_mesh(mesh, price=0.5)
    good = certify_mesh(mesh, found, budget=None, penalty=0.5)
    assert good.claim is Claim.OPTIMAL
    # A step that turns on nodes which a minimizer has off.
    fixing = found.proof.fixings[0]
    step = fixing.steps[0]
    wrong = replace(fixing, steps=[replace(step, support=~step.support)])
    proof = replace(found.proof, fixings=[wrong, *found.proof.fixings[1:]])
    bad = certify_mesh(mesh, replace(found, proof=proof), budget=None, penalty=0.5)
    assert bad.lower_bound is None or bad.lower_bound < found.value * (1 - 1e-6)
    assert bad.claim is not Claim.OPTIMAL
    # A level that is above the best signal.
    high = replace(fixing, level=fixing.level + 1.0, low=fixing.level + 1.0)
    proof = replace(found.proof, fixings=[high])
    bad = certify_mesh(mesh, replace(found, proof=proof), budget=None, penalty=0.5)
    assert bad.lower_bound is None
    # Multipliers whose costs do not make up the price pay for what they add.
    signed = mesh_of(image((20, 20), signed=True), 1.0)
    found = solve_mesh(signed, price=0.5)
    best = certify_mesh(signed, found, budget=None, penalty=0.5)
    if best.measures["bound_method"] == "message inequalities at multipliers":
        raised = [c + 0.1 for c in found.proof.costs]
        proof = replace(found.proof, costs=raised)
        bad = certify_mesh(signed, replace(found, proof=proof), budget=None, penalty=0.5)
        assert bad.lower_bound <= found.value


def test_bounds_on_forests_are_recomputed():
    rng = np.random.default_rng(11)
    rechecked = {"message inequalities at multipliers": 0, "steps of a bracket": 0}
    for case in range(16):
        n = 9
        first, second = np.nonzero(np.triu(rng.random((n, n)) < 0.4, 1))
        smoothness = rng.uniform(0.1, 3.0, first.size)
        y = rng.standard_normal(n)
        given = {"n_nonzero": 4} if case % 2 else {"penalty": 0.2}
        est = SparseSmooth(smoothness, graph=np.column_stack([first, second]), **given)
        est.fit(y if case % 4 else np.abs(y))
        y = y if case % 4 else np.abs(y)
        values = smooth_values(y, np.ones(n), laplacian(n, first, second, smoothness), False)
        best = by_budget(values)[4] if case % 2 else (values + costs_of(np.full(n, 0.2))).min()
        certificate = est.certificate_
        method = certificate.measures["bound_method"]
        rechecked[method] += 1
        assert certificate.lower_bound <= best + CLOSE * (y @ y)
        # Nothing but rounding is lost against the bound of the method.
        assert certificate.lower_bound >= est.lower_bound_ - 1e-9 * (y @ y)
    assert min(rechecked.values()) >= 4, rechecked


def test_multipliers_of_another_graph_prove_nothing():
    rng = np.random.default_rng(2)
    first, second = np.nonzero(np.triu(rng.random((12, 12)) < 0.5, 1))
    mesh = Mesh(rng.standard_normal(12), np.ones(12), first, second, np.ones(first.size))
    found = solve_mesh(mesh, price=None, budget=4)
    assert isinstance(found.proof, Multipliers)
    assert certify_mesh(mesh, found, budget=4, penalty=None).lower_bound is not None
    # As many edges of the same weights, between other nodes.
    ends = np.column_stack([first, second])
    missing = np.argwhere(np.triu(1 - np.eye(12), 1) > 0)
    missing = missing[~(missing[:, None] == ends).all(axis=2).any(axis=1)]
    other = replace(mesh, first=np.append(first[1:], missing[0, 0]),
                    second=np.append(second[1:], missing[0, 1]))  # fmt: skip
    bad = certify_mesh(other, found, budget=4, penalty=None)
    assert bad.lower_bound is None
    assert bad.assumptions == ("The parts of the proof do not make up the graph.",)


@pytest.mark.parametrize("grid", [True, False])
def test_parts_hold_every_edge_once_and_blocks_every_node(grid):
    rng = np.random.default_rng(3)
    for _ in range(20):
        y, shape, first, second, smoothness, _ = random_graph(rng, grid=grid)
        held = smoothness > 0
        n = y.size
        mesh = Mesh(
            np.nan_to_num(y), np.ones(n), first[held], second[held], smoothness[held], False, None,
            shape if grid else None,
        )  # fmt: skip
        parts = parts_of(mesh)
        inside = sum(float(lines.edges.sum()) for lines in parts)
        assert inside == pytest.approx(smoothness.sum())
        assert set(np.concatenate([lines.nodes for lines in parts])) == set(range(n))
        for lines in parts:
            around = np.asarray(lines.outer).sum() + 2 * lines.edges.sum()
            touching = np.isin(mesh.first, lines.nodes), np.isin(mesh.second, lines.nodes)
            assert around == pytest.approx(
                mesh.edges[touching[0]].sum() + mesh.edges[touching[1]].sum()
            )
        for paths in (False, True):
            blocks = blocks_of(mesh, paths=paths)
            nodes = np.concatenate([lines.nodes for lines in blocks])
            assert len(nodes) == (2 * n if grid else n)
            x = np.zeros(n)
            for lines in blocks:
                # A node outside a block is never in it: no edge is left out.
                assert np.abs(lines.outside[:, lines.nodes]).sum() == 0
                x[lines.nodes] = lines.minimize(mesh, x, np.zeros(n))
            assert mesh.value(x, 0.0) <= mesh.value(np.zeros(n), 0.0) + 1e-12


def test_a_disconnected_graph_is_the_sum_of_its_parts():
    rng = np.random.default_rng(5)
    ring = np.array([[0, 1], [1, 2], [2, 0]])
    y = np.abs(rng.standard_normal(7))
    both = SparseSmooth(1.0, penalty=0.2, graph=np.concatenate([ring, ring + 4])).fit(y)
    one = SparseSmooth(1.0, penalty=0.2, graph=ring).fit(y[:3])
    two = SparseSmooth(1.0, penalty=0.2, graph=ring).fit(y[4:])
    alone = min(y[3] ** 2, 0.2)
    assert both.value_ == pytest.approx(one.value_ + two.value_ + alone, rel=CLOSE)
    assert both.certificate_.claim is Claim.OPTIMAL


def test_paths_of_budgets_and_denoise_on_an_image():
    y = image((16, 16))
    fits = SparseSmooth(1.0, graph="grid").path(y, [5, 10, 20])
    values = [fit.value_ for fit in fits]
    assert values == sorted(values, reverse=True)
    assert denoise(y, smoothness=1.0, n_nonzero=10, graph="grid").shape == (16, 16)
    assert np.count_nonzero(fits[1].signal_) <= 10


def test_smoothness_edge_by_edge_runs_along_rows_first():
    y = np.array([[2.0, 0.0], [0.0, 0.0]])
    edges = np.array([10.0, 0.0, 0.0, 0.0])
    est = SparseSmooth(edges, penalty=0.0, graph="grid").fit(y)
    assert est.signal_[0].min() > 0.9
    assert (est.signal_[1] == 0).all()


SQUARE = [[0, 1], [1, 2], [2, 3], [3, 0]]
BAD = [
    (
        {"graph": [[0, 1], [1, 0]], "penalty": 1.0},
        InvalidParameterError,
        "`graph` must hold every edge once, got (0, 1) 2 times.",
    ),
    (
        {"graph": [[0, 1], [2, 2]], "penalty": 1.0},
        InvalidParameterError,
        "`graph` must not join a sample to itself, got 2.",
    ),
    (
        {"graph": [[0, 4]], "penalty": 1.0},
        InvalidParameterError,
        "`graph` must name samples 0 to 3, got the edge (0, 4).",
    ),
    (
        {"graph": "tree", "penalty": 1.0},
        InvalidParameterError,
        "`graph` must be 'chain', 'grid' or a list of edges, got 'tree'.",
    ),
    (
        {"graph": ("tree", SQUARE), "penalty": 1.0},
        InvalidParameterError,
        "`graph` must be a tree, got 4 edges between 4 samples that make a cycle.",
    ),
    (
        {"graph": ("ring", SQUARE[:1]), "penalty": 1.0},
        InvalidParameterError,
        "`graph` must be ('tree', edges) where it is a word and edges, got ('ring', [[0, 1]]).",
    ),
    (
        {"graph": SQUARE, "penalty": 1.0, "smoothness": [1.0, 1.0, -1.0, 1.0]},
        InvalidParameterError,
        "`smoothness` must be finite and not negative, got -1.",
    ),
    (
        {"graph": SQUARE, "penalty": 1.0, "bump_penalty": 1.0},
        IncompatibleError,
        "`bump_penalty` needs a chain, got a graph with cycles.",
    ),
    (
        {"graph": SQUARE, "n_nonzero": 5},
        InvalidParameterError,
        "`n_nonzero` must be at most 4, the number of samples, got 5.",
    ),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD)
def test_bad_graphs_are_one_sentence(given, kind, message):
    with pytest.raises(kind) as error:
        SparseSmooth(**given).fit([1.0, 2.0, 3.0, 4.0])
    assert error.value.message == message


def test_ebic_needs_a_graph_without_cycles():
    for graph, y, noun in (
        (SQUARE, [1.0, 2.0, 3.0, 4.0], "graph with cycles"),
        ("grid", np.ones((2, 2)), "grid"),
    ):
        with pytest.raises(IncompatibleError) as error:
            SparseSmooth(graph=graph).select(y)
        assert error.value.message == (
            f"The criterion 'ebic' needs a chain or a tree, got a {noun}: it counts supports by "
            "their bumps."
        )
        assert error.value.hint == "Pass `criterion='cv'`."


def test_folds_of_an_image_are_diagonals():
    rng = np.random.default_rng(4)
    y = 0.3 * rng.standard_normal((6, 6))
    y[1:4, 2:5] += 3.0
    est = SparseSmooth(1.0, graph="grid").select(y, [2, 9], criterion="cv", n_folds=3)
    assert est.budget_ == 9
    fold = (2 * np.arange(6)[:, None] + np.arange(6)) % 3
    total = 0.0
    for k in range(3):
        part = SparseSmooth(1.0, n_nonzero=9, graph="grid").fit(np.where(fold == k, np.nan, y))
        total += ((y - part.signal_)[fold == k] ** 2).sum()
    assert est.criterion_["cv"][1] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("kind", ["frame", "float32", "uint8", "bool"])
def test_images_of_every_kind_are_read(kind):
    pandas = pytest.importorskip("pandas")
    y = np.zeros((5, 6))
    y[1:4, 2:5] = 3.0
    made = {
        "frame": lambda: pandas.DataFrame(y),
        "float32": lambda: y.astype(np.float32),
        "uint8": lambda: y.astype(np.uint8),
        "bool": lambda: y > 0,
    }[kind]()
    scale = 1.0 if kind != "bool" else 1 / 3
    plain = SparseSmooth(0.5, n_nonzero=9, graph="grid").fit(y * scale)
    est = SparseSmooth(0.5, n_nonzero=9, graph="grid").fit(made)
    assert est.value_ == pytest.approx(plain.value_, rel=1e-12)
    assert isinstance(est.signal_, np.ndarray)
    assert est.signal_.shape == (5, 6)
    assert est.signal_.dtype == np.float64
