"""The certificate of a network, against closed forms and against `verify` on whole data."""

import copy

import pytest
import torch
from torch import nn

import ellzero
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import certify
from ellzero.sets import L0Ball, NMPattern, ProductSet


def half_squares(prediction, y):
    return (prediction - y).square().sum(-1).mean() / 2


@pytest.fixture
def regression():
    """A one-layer network at the least-squares solution on its support, and its data."""
    torch.manual_seed(0)
    X = torch.randn(60, 8).double()
    y = X[:, :3] @ torch.tensor([[2.0], [-3.0], [1.0]]).double() + 0.1 * torch.randn(60, 1)
    model = nn.Linear(8, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
        model.weight[:, :3] = torch.linalg.lstsq(X[:, :3], y).solution.T
    return model, X, y


def pieces(X, y, size=25):
    return list(zip(X.split(size), y.split(size), strict=True))


def test_numbers_are_those_of_least_squares(regression):
    model, X, y = regression
    # Pieces of 25, 25 and 10 samples: they count by their sizes.
    found = certify(model, half_squares, pieces(X, y), n_nonzero=3)
    residual = X @ model.weight.detach().T - y
    grad = (X.T @ residual / 60).flatten()
    measures = found.measures
    assert found.claim is ellzero.Claim.STATIONARY
    assert measures["value"] == pytest.approx(float(residual.square().mean() / 2), rel=1e-12)
    assert measures["grad_off_support"] == pytest.approx(float(grad[3:].abs().max()), rel=1e-9)
    assert measures["grad_on_support"] < 1e-12
    smallest = float(model.weight.detach()[0, :3].abs().min())
    step = measures["step_size"]
    assert measures["margin"] == pytest.approx(smallest - step * float(grad[3:].abs().max()))
    # The restricted smoothness of a quadratic: the largest eigenvalue over all pairs of supports.
    gram = X.T @ X / 60
    every = torch.combinations(torch.arange(8), 6)
    largest = max(float(torch.linalg.eigvalsh(gram[i][:, i])[-1]) for i in every)
    assert 1 / step == pytest.approx(largest, rel=1e-6)
    assert (measures["n_nonzero"], measures["budget"], measures["n_samples"]) == (3, 3, 60)


def test_a_wrong_network_is_refused(regression):
    model, X, y = regression
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.weight[0, 0] += 1e-3
    found = certify(moved, half_squares, pieces(X, y), n_nonzero=3)
    assert found.claim is ellzero.Claim.FEASIBLE
    over = certify(model, half_squares, pieces(X, y), n_nonzero=2)
    assert over.claim is None
    assert not over.holds
    # A useless entry in the place of a good one: the support itself is not stable.
    swapped = copy.deepcopy(model)
    with torch.no_grad():
        support = [0, 2, 5]
        swapped.weight.zero_()
        swapped.weight[:, support] = torch.linalg.lstsq(X[:, support], y).solution.T
    found = certify(swapped, half_squares, pieces(X, y), n_nonzero=3)
    assert found.claim is ellzero.Claim.FEASIBLE
    assert found.measures["grad_on_support"] < 1e-12
    assert found.measures["margin"] < 0


def test_the_dense_reference_gives_the_cost_of_sparsity(regression):
    model, X, y = regression
    dense = copy.deepcopy(model)
    with torch.no_grad():
        dense.weight.copy_(torch.linalg.lstsq(X, y).solution.T)
    by_module = certify(model, half_squares, pieces(X, y), dense=dense, ridge=0.5)
    state = {k: v.clone() for k, v in dense.state_dict().items()}
    by_state = certify(model, half_squares, pieces(X, y), dense=state, ridge=0.5)

    def value(m):
        weight = m.weight.detach()
        return float((X @ weight.T - y).square().mean() / 2 + 0.25 * weight.square().sum())

    for found in (by_module, by_state):
        assert found.measures["epsilon"] == pytest.approx(value(model) - value(dense), rel=1e-9)
        assert found.measures["dense_value"] == pytest.approx(value(dense), rel=1e-12)
    assert "The budget is the number of nonzeros that the model has." in by_state.assumptions


class Mixed(nn.Module):
    """Batch norm, dropout, a tied weight and named inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.second, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)
        self.third = nn.Linear(6, 6)
        self.third.weight = self.second.weight

    def forward(self, left, right):
        hidden = torch.tanh(self.norm(self.first(torch.cat([left, right], 1))))
        return self.third(self.drop(self.second(hidden)))


def test_any_network_and_its_inputs_and_nothing_of_it_changes():
    torch.manual_seed(1)
    model = Mixed()
    x, y = torch.randn(30, 4), torch.randint(0, 6, (30,))
    model(x[:, :2], x[:, 2:])  # running statistics
    before = copy.deepcopy(model.state_dict())
    loss = nn.functional.cross_entropy
    by_name = certify(model, loss, [({"left": x[:, :2], "right": x[:, 2:]}, y)], n_nonzero=60)
    by_place = certify(model, loss, [([x[:, :2], x[:, 2:]], y)], n_nonzero=1.0)
    assert by_name.measures["value"] == pytest.approx(by_place.measures["value"], rel=1e-12)
    assert by_name.measures["n_nonzero"] == 24 + 36  # tied ones once
    few = certify(model, loss, [([x[:, :2], x[:, 2:]], y)], n_nonzero=0.99)
    assert few.claim is None  # 59 entries are allowed, 60 are there
    quiet = copy.deepcopy(model).eval().double()
    with torch.no_grad():
        expected = loss(quiet(x[:, :2].double(), x[:, 2:].double()), y)
    assert by_name.measures["value"] == pytest.approx(float(expected), rel=1e-9)
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_budgets_of_tensors_and_patterns():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(NMPattern(2, 4).project({"w": model[0].weight})["w"])
        model[2].weight[1] = 0
    data = [(torch.randn(9, 4).double(), torch.randn(9, 2).double())]

    def claim(**budget):
        return certify(model, half_squares, data, **budget).claim

    assert claim(n_nonzero={"0.weight": 8, "2.weight": 4}) is ellzero.Claim.FEASIBLE
    assert claim(n_nonzero={"0.weight": 9, "2.weight": 3}) is None
    assert claim(constraint=NMPattern(2, 4, ("0.weight",))) is ellzero.Claim.FEASIBLE
    assert claim(constraint=NMPattern(1, 4)) is None
    both = ProductSet((NMPattern(2, 4, ("0.weight",)), L0Ball(4, ("2.weight",))))
    assert claim(constraint=both) is ellzero.Claim.FEASIBLE


def test_stationary_for_a_budget_in_each_tensor():
    """Two regressions side by side: one global budget would exchange, two budgets do not."""
    torch.manual_seed(3)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)

        def forward(self, x):
            return torch.cat([self.a(x), self.b(x)], 1)

    model = Both().double()
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([[9.0, 0, 0]]))
        model.b.weight.copy_(torch.tensor([[0.1, 0, 0]]))
    # An orthogonal design: the gradient off the support of `a` is 8, far more than 0.1.
    data = [(torch.eye(3).double(), torch.tensor([[9.0, 0.1], [8.0, 0.05], [0, 0]]).double())]
    each = certify(model, half_squares, data, n_nonzero={"a.weight": 1, "b.weight": 1})
    assert each.claim is ellzero.Claim.STATIONARY
    together = certify(model, half_squares, data, n_nonzero=2)
    assert together.claim is ellzero.Claim.FEASIBLE


def test_samples_are_taken_from_the_front(regression):
    model, X, y = regression
    found = certify(model, half_squares, pieces(X, y), max_samples=30, step_size=0.1)
    expected = float((X[:30] @ model.weight.detach().T - y[:30]).square().mean() / 2)
    assert found.measures["value"] == pytest.approx(expected, rel=1e-12)
    assert found.measures["step_size_given"] is True
    assert found.assumptions[0] == (
        "The loss is the mean over 30 samples, in evaluation mode. They are the first that the "
        "loader gave."
    )


def test_a_certificate_prints_its_checks(regression):
    model, X, y = regression
    lines = str(certify(model, half_squares, pieces(X, y), n_nonzero=3)).splitlines()
    assert lines[0] == "stationary: stable under hard thresholding"
    assert "      feasible holds  3 <= 3  nonzero entries" in lines
    assert "       assumes   The loss is the mean over 60 samples, in evaluation mode." in lines


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m, d: certify(m, half_squares, d, n_nonzero=1, constraint=L0Ball(1)),
            InvalidParameterError,
            "At most one of `n_nonzero` and `constraint` must be given, got both.",
        ),
        (
            lambda m, d: certify(m, half_squares, []),
            InvalidParameterError,
            "`batches` must give at least one batch, got none.",
        ),
        (
            lambda m, d: certify(m, half_squares, [{"x": d[0][0]}]),
            InvalidParameterError,
            "`loader` must give pairs of inputs and targets, got dict.\n"
            "hint: Make them on the way: `((b['x'], b['y']) for b in loader)`.",
        ),
        (
            lambda m, d: certify(m, half_squares, [("text", d[0][1])]),
            InvalidParameterError,
            "The first input of every batch must be a tensor with at least one sample, got str.",
        ),
        (
            lambda m, d: certify(m, half_squares, [(d[0][0][:0], d[0][1][:0])]),
            InvalidParameterError,
            "The first input of every batch must be a tensor with at least one sample, got shape "
            "(0, 8).",
        ),
        (
            lambda m, d: certify(m, half_squares, d, dense={"weight": torch.zeros(1, 7)}),
            InvalidParameterError,
            "`dense` must hold 'weight' of shape (1, 8), got shape (1, 7).\n"
            "hint: Give the dense network of the same class, or its `state_dict()`.",
        ),
        (
            lambda m, d: certify(m, half_squares, d, dense={}),
            InvalidParameterError,
            "`dense` must hold 'weight' of shape (1, 8), got none.\n"
            "hint: Give the dense network of the same class, or its `state_dict()`.",
        ),
        (
            lambda m, d: certify(m, half_squares, d, max_samples=0),
            InvalidParameterError,
            "`max_samples` must be an integer of at least 1, got 0.",
        ),
        (
            lambda m, d: certify(m, lambda p, t: p - t, d),
            InvalidParameterError,
            "`loss_fn` must return a 0-d tensor, got shape (25, 1).\n"
            "hint: Return the mean over samples.",
        ),
    ],
)
def test_wrong_arguments_are_refused(regression, call, error, message):
    model, X, y = regression
    with pytest.raises(error) as raised:
        call(model, pieces(X, y)[:1])
    assert str(raised.value) == message


def test_sharded_parameters_are_refused(monkeypatch, regression):
    model, X, y = regression
    monkeypatch.setattr("ellzero.tensors.thresholded.is_sharded", lambda tensor: True)
    with pytest.raises(IncompatibleError) as raised:
        certify(model, half_squares, pieces(X, y))
    assert str(raised.value).startswith("`model` must hold whole parameters, got sharded ones.\n")
