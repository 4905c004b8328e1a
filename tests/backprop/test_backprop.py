"""Jacobian products against automatic differentiation, finite differences and pencil and paper."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from ellzero.backprop import (
    BlockJacobian,
    DenseJacobian,
    DiagonalJacobian,
    HalfSquaredError,
    IdentityJacobian,
    LayerParts,
    LowRankJacobian,
    Residual,
    ResidualJacobian,
    SelectionJacobian,
    SparseJacobian,
    batch_gradients,
    layer_jacobians,
)
from ellzero.errors import InvalidParameterError
from ellzero.report import to_html


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(model, seed=0):
    """Give parameters and running statistics values that are nowhere special."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source))
        for name, b in model.named_buffers():
            if b.is_floating_point():
                noise = torch.rand(b.shape, generator=source)
                b.copy_(noise + 0.5 if "var" in name else noise)
    return model.double().eval()


LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear-plain": (lambda: nn.Linear(4, 3, bias=False), (4,)),
    "linear-tokens": (lambda: nn.Linear(4, 3), (2, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2), (2, 9)),
    "conv1d-grouped": (lambda: nn.Conv1d(4, 6, 2, groups=2, bias=False), (4, 5)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 2)), (2, 4, 5)),
    "conv2d-grouped": (lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=(1, 2)), (4, 4, 6)),
    "batch-norm": (lambda: nn.BatchNorm1d(3), (3,)),
    "batch-norm-2d": (lambda: nn.BatchNorm2d(3), (3, 2, 4)),
    "batch-norm-plain": (lambda: nn.BatchNorm2d(3, affine=False), (3, 2, 4)),
    "layer-norm": (lambda: nn.LayerNorm(5), (5,)),
    "layer-norm-rows": (lambda: nn.LayerNorm(5), (3, 5)),
    "layer-norm-image": (lambda: nn.LayerNorm((3, 2)), (4, 3, 2)),
    "layer-norm-plain": (lambda: nn.LayerNorm(5, elementwise_affine=False), (2, 5)),
    "group-norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 2)),
    "instance-norm": (lambda: nn.InstanceNorm2d(3, affine=True), (3, 2, 4)),
    "relu": (nn.ReLU, (6,)),
    "relu6": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU6()), (6,)),
    "hardtanh": (lambda: nn.Hardtanh(-0.5, 0.7), (9,)),
    "leaky": (lambda: nn.LeakyReLU(0.2), (3, 2)),
    "elu": (lambda: nn.ELU(0.7), (6,)),
    "tanh": (nn.Tanh, (6,)),
    "sigmoid": (nn.Sigmoid, (6,)),
    "log-sigmoid": (nn.LogSigmoid, (6,)),
    "softplus": (lambda: nn.Softplus(beta=3.0, threshold=2.0), (9,)),
    "softsign": (nn.Softsign, (6,)),
    "silu": (nn.SiLU, (6,)),
    "gelu": (nn.GELU, (6,)),
    "gelu-tanh": (lambda: nn.GELU(approximate="tanh"), (6,)),
    "softmax": (lambda: nn.Softmax(dim=-1), (5,)),
    "softmax-rows": (lambda: nn.Softmax(dim=2), (3, 4)),
    "log-softmax": (lambda: nn.LogSoftmax(dim=-1), (3, 4)),
    "max-pool-1d": (lambda: nn.MaxPool1d(3, stride=2, padding=1), (2, 8)),
    "max-pool-2d": (lambda: nn.MaxPool2d((2, 3), stride=1, dilation=(2, 1)), (2, 5, 6)),
    "average-pool-1d": (lambda: nn.AvgPool1d(3, stride=2, padding=1), (2, 8)),
    "average-pool-2d": (lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False), (2, 5, 4)),
    "average-pool-divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), (2, 4, 4)),
    "adaptive-1d": (lambda: nn.AdaptiveAvgPool1d(3), (2, 7)),
    "adaptive-2d": (lambda: nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 7)),
    "flatten": (nn.Flatten, (2, 3)),
    "identity": (nn.Identity, (3,)),
    "dropout": (lambda: nn.Dropout(0.5), (3,)),
    "residual": (lambda: Residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh())), (4,)),
    "residual-nested": (
        lambda: Residual(nn.Sequential(nn.Linear(3, 3), Residual(nn.Linear(3, 3)), nn.SiLU())),
        (3,),
    ),
}  # fmt: skip
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


@every_layer
def test_layers_agree_with_autograd_and_differences(make, shape):
    model, x = filled(make()), draw(*shape, seed=1)
    chain = layer_jacobians(model, x)
    assert torch.equal(chain.value, model(x.unsqueeze(0))[0])
    wanted = torch.autograd.functional.jacobian(lambda v: model(v.unsqueeze(0))[0], x)
    wanted = wanted.reshape(chain.value.numel(), x.numel())
    scale = max(float(wanted.abs().max()), 1.0)
    assert float((chain.product() - wanted).abs().max()) <= 1e-12 * scale
    assert chain.kinks == ()
    assert set(chain.blocks) == {n for n, _ in model.named_parameters()}
    assert chain.check_against_autograd(1e-12).holds
    assert chain.check_differences(1e-6).holds


@every_layer
def test_structured_matrices_equal_themselves_written_out(make, shape):
    chain = layer_jacobians(filled(make()), draw(*shape, seed=1))
    for name in [None, *chain.blocks]:
        for factor in chain.factors(name):
            J = factor.jacobian
            m, n = J.shape
            dense = J.dense()
            assert tuple(dense.shape) == (m, n)
            rows, columns = draw(3, m, seed=2), draw(n, 2, seed=3)
            assert torch.allclose(J.vjp(rows), rows @ dense, rtol=1e-12, atol=1e-12)
            assert torch.allclose(J.jvp(columns), dense @ columns, rtol=1e-12, atol=1e-12)
            index = torch.tensor([n - 1, 0])
            assert torch.allclose(J.columns(index), dense[:, index], rtol=1e-12, atol=1e-14)
            values, wanted = J.singular_values(), np.linalg.svd(dense.numpy(), compute_uv=False)
            got = np.zeros(max(len(values), len(wanted)))
            got[: len(values)] = values.numpy()
            np.testing.assert_allclose(got[: len(wanted)], wanted, rtol=1e-8, atol=1e-10)
            assert J.dense_bytes == 8 * m * n


def test_large_factors_keep_their_structure():
    chain = layer_jacobians(nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 10)), draw(784))
    last = chain.factors("0.weight")[-1].jacobian
    assert last.shape == (300, 235_200)
    assert last.dense_bytes == 564_480_000
    # Kept as the row of inputs; a product with it costs one number for each entry.
    assert last.structure == "I_300 (x) row of 784"
    assert last.cost == 235_200


def worked():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [0.5, 0.5], [-1.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 0.5]))
        model[2].weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]))
        model[2].bias.zero_()
    x = torch.tensor([1.0, 2.0])
    return layer_jacobians(model, x, nn.CrossEntropyLoss(), torch.tensor(0))


def test_worked_example_of_the_facts():
    chain = worked()
    assert float(chain.value) == pytest.approx(math.log(1 + math.exp(1.5)), rel=1e-14)
    assert float(chain.value) == pytest.approx(1.701413, abs=5e-7)
    p = 1 / (1 + math.exp(-1.5))
    assert p == pytest.approx(0.817574, abs=5e-7)
    wanted = {
        "0.weight": [[0, 0], [p, 2 * p], [0, 0]],
        "0.bias": [0, p, 0],
        "2.weight": [[0, -1.5 * p, 0], [0, 1.5 * p, 0]],
        "2.bias": [-p, p],
    }
    for mode in ("shared", "naive"):
        for name, values in wanted.items():
            assert torch.allclose(
                chain.gradient(name, mode),
                torch.tensor(values, dtype=torch.float64),
                rtol=1e-14,
                atol=1e-15,
            )
    assert [layer.output.tolist() for layer in chain] == [[-1.0, 1.5, -0.5], [0, 1.5, 0], [0, 1.5]]
    assert chain.check_against_autograd(1e-12).holds


def test_rendering():
    assert worked().render("0.weight").splitlines() == [
        "d loss / d 0.weight = J(loss)  J(2)   J(1)      J(0; weight)",
        "                      1 x 2    2 x 3  3 x 3     3 x 6",
        "                      row      dense  diagonal  I_3 (x) row of 2",
    ]
    narrow = worked().render("0.weight", width=40).splitlines()
    assert narrow[0] == "d loss / d 0.weight = J(loss)  J(2)"
    assert narrow[3].strip() == "J(1)"
    assert all(len(line) <= 40 for line in narrow)
    text = str(worked())
    assert text.splitlines()[0] == "3 layers, 4 parameters, loss 1.70141"
    assert all(f"d loss / d {block} =" in text for block in worked().blocks)


def test_counts_of_a_chain_of_dense_layers():
    n, depth = 64, 10
    model = nn.Sequential(*(nn.Linear(n, n, bias=False) for _ in range(depth)))
    chain = layer_jacobians(model, draw(n), HalfSquaredError(), torch.zeros(n))
    assert chain.multiplications(order="loss") == depth * n**2 == 40_960
    # Matrices are multiplied up to the last one, which meets the row of the loss.
    assert chain.multiplications(order="input") == (depth - 1) * n**3 + n**2
    shared, naive = chain.gradients("shared"), chain.gradients("naive")
    # A row through the layers above, and one product with the Jacobian of every parameter; the
    # row of the loss itself counts as one product.
    assert shared.multiplications == n + (depth - 1) * n**2 + depth * n**2
    assert shared.products == 1 + (depth - 1) + depth
    pairs = depth * (depth - 1) // 2
    assert naive.multiplications == depth * n + pairs * n**2 + depth * n**2
    assert naive.products == depth + pairs + depth
    assert all(
        torch.allclose(shared.values[b], naive.values[b], rtol=1e-13, atol=0) for b in chain.blocks
    )


def test_naive_grows_with_the_square_of_the_depth():
    counts = {}
    for depth in (5, 10, 20, 40):
        model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(depth)))
        chain = layer_jacobians(model, draw(8), HalfSquaredError(), torch.zeros(8))
        counts[depth] = [chain.gradients(m).multiplications for m in ("shared", "naive")]
    assert counts[40][0] / counts[20][0] == pytest.approx(2, rel=0.05)
    assert counts[40][1] / counts[20][1] == pytest.approx(4, rel=0.1)


NETWORKS = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(5, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, 4), nn.GELU(),
            nn.Linear(4, 3),
        ),
        (5,),
    ),
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Sequential(Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU()))),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        ),
        (1, 6, 6),
    ),
}  # fmt: skip
LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss, lambda: torch.tensor(2)),
    "smoothed": (lambda: nn.CrossEntropyLoss(label_smoothing=0.1), lambda: torch.tensor(0)),
    "soft-labels": (nn.CrossEntropyLoss, lambda: torch.tensor([0.2, 0.5, 0.3])),
    "mse": (nn.MSELoss, lambda: torch.tensor([0.1, 0.2, 0.3])),
    "mse-sum": (lambda: nn.MSELoss(reduction="sum"), lambda: torch.tensor([0.1, 0.2, 0.3])),
    "half": (HalfSquaredError, lambda: torch.tensor([0.1, 0.2, 0.3])),
    "l1": (nn.L1Loss, lambda: torch.tensor([0.1, 0.2, 0.3])),
    "logits": (nn.BCEWithLogitsLoss, lambda: torch.tensor([0.0, 1.0, 0.4])),
}


@pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(("loss", "target"), LOSSES.values(), ids=LOSSES)
def test_networks_under_losses(make, shape, loss, target):
    model = filled(make())
    chain = layer_jacobians(model, draw(*shape, seed=1), loss(), target())
    assert chain.check_against_autograd(1e-12).holds
    assert chain.check_differences(1e-5).holds
    shared, naive = chain.gradients("shared").values, chain.gradients("naive").values
    for block in chain.blocks:
        assert shared[block].shape == dict(model.named_parameters())[block].shape
        assert torch.allclose(shared[block], naive[block], rtol=1e-11, atol=1e-13)
        product = chain.product(block)
        assert torch.allclose(product[0], shared[block].reshape(-1), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("head", "loss", "y"),
    [
        (nn.LogSoftmax(dim=-1), nn.NLLLoss(), torch.tensor(1)),
        (nn.Sigmoid(), nn.BCELoss(), torch.tensor([0.0, 1.0, 0.4])),
    ],
)
def test_losses_after_their_activations(head, loss, y):
    model = filled(nn.Sequential(nn.Linear(4, 3), head))
    chain = layer_jacobians(model, draw(4), loss, y)
    assert chain.check_against_autograd(1e-12).holds


def test_agreement_refuses_a_wrong_rule():
    def wrong(layer, x):
        return LayerParts(torch.tanh(x), DiagonalJacobian(torch.ones(x.numel()).double()))

    model = filled(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))
    chain = layer_jacobians(model, draw(3), rules={nn.Tanh: wrong})
    agreement = chain.check_against_autograd()
    assert not agreement.holds
    assert not chain.check_differences().holds
    # Only what lies below the wrong layer is wrong.
    assert agreement.relative["2.weight"] <= 1e-12
    assert agreement.relative["0.weight"] > 1e-3
    assert str(agreement).startswith("Jacobian products and automatic differentiation DIFFER")


def test_a_rule_of_the_user():
    class Square(nn.Module):
        def forward(self, x):
            return x * x

    model = filled(nn.Sequential(nn.Linear(3, 3), Square()))
    rule = {Square: lambda layer, x: LayerParts(layer(x), DiagonalJacobian(2 * x))}
    assert layer_jacobians(model, draw(3), rules=rule).check_against_autograd().holds


def test_batches_average_their_samples():
    model = filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    X, y = draw(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    found = batch_gradients(model, X, nn.CrossEntropyLoss(), y)
    nn.functional.cross_entropy(model(X), y).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(found.values[name], p.grad, rtol=1e-12, atol=1e-14)


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 2))
    before = [p.clone() for p in model.parameters()]
    chain = layer_jacobians(model, torch.randn(3, generator=torch.Generator().manual_seed(0)))
    chain.check_against_autograd()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())


def test_restricted_columns_are_those_of_the_whole():
    model = filled(NETWORKS["mlp"][0]())
    with torch.no_grad():
        model[0].weight[torch.rand(7, 5, generator=torch.Generator().manual_seed(1)) < 0.6] = 0
    chain = layer_jacobians(model, draw(5))
    found = chain.restricted()
    whole = {b: chain.product(b) for b in chain.blocks}
    assert len(found.columns) == sum(int((p != 0).sum()) for p in model.parameters())
    for k, (name, i) in enumerate(found.columns):
        assert torch.allclose(found.matrix[:, k], whole[name][:, i], rtol=1e-11, atol=1e-13)
    # Half the squared error of a network that fits exactly: its Hessian is J^T J.
    mask = {"5.weight": torch.zeros(3, 4, dtype=torch.bool)}
    mask["5.weight"][0, 1] = mask["5.weight"][2, 3] = True
    small = chain.restricted(mask)
    assert small.columns == (("5.weight", 1), ("5.weight", 11))
    names, target = [n for n, _ in model.named_parameters()], model(draw(5).unsqueeze(0)).detach()

    def loss(weight):
        params = dict(model.named_parameters()) | {"5.weight": weight}
        out = torch.func.functional_call(model, params, (draw(5).unsqueeze(0),))
        return (out - target).square().sum() / 2

    assert names[-2] == "5.weight"
    H = torch.autograd.functional.hessian(loss, model[5].weight.detach()).reshape(12, 12)
    block = H[[1, 11]][:, [1, 11]]
    assert small.gauss_newton_smoothness == pytest.approx(
        float(torch.linalg.eigvalsh(block)[-1]), rel=1e-10
    )
    assert chain.restricted({}).matrix.shape == (3, 0)
    assert chain.restricted({}).gauss_newton_smoothness == 0.0


def test_vanishing_and_exploding_gradients_are_diagnosed():
    def spectrum(gain, depth=20):
        model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(depth)))
        for i, layer in enumerate(model):
            nn.init.orthogonal_(layer.weight, gain, torch.Generator().manual_seed(i))
        return layer_jacobians(model, draw(6)).spectrum()

    for gain, word in ((0.5, "vanish"), (1.0, "neither vanish nor explode"), (1.7, "explode")):
        found = spectrum(gain)
        assert found.diagnosis.startswith(f"Gradients {word}: ")
        assert found.growth == pytest.approx(gain, rel=1e-5)
        for k, (factor, prefix) in enumerate(
            zip(found.factors, found.prefixes, strict=True), start=1
        ):
            assert factor.tolist() == pytest.approx([gain] * 6, rel=1e-5)
            assert prefix.tolist() == pytest.approx([gain**k] * 6, rel=1e-4)
    dead = filled(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    with torch.no_grad():
        dead[0].bias.fill_(-100.0)
    assert layer_jacobians(dead, draw(2)).spectrum().diagnosis == (
        "The product of all layers is zero: no gradient reaches the input."
    )


def test_points_without_derivative_are_said():
    relu = layer_jacobians(nn.ReLU(), torch.tensor([0.0, 1.0, -1.0, 0.0]))
    assert relu.kinks == (
        "Layer 'model': 2 of 4 inputs are exactly 0, where ReLU has no derivative.",
    )
    assert relu.product().diagonal().tolist() == [0.0, 1.0, 0.0, 0.0]
    pool = nn.Sequential(nn.MaxPool1d(2))
    x = torch.tensor([[1.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    chain = layer_jacobians(pool, x)
    assert chain.kinks == (
        "Layer '0': 1 of 2 windows have more than one largest entry, where MaxPool1d has no "
        "derivative.",
    )
    theirs = torch.autograd.functional.jacobian(lambda v: pool(v.unsqueeze(0))[0], x)
    assert torch.equal(chain.product(), theirs.reshape(2, 4))
    error = layer_jacobians(nn.Identity(), torch.ones(2), nn.L1Loss(), torch.tensor([1.0, 3.0]))
    assert error.kinks == ("Loss: 1 of 2 errors are exactly 0, where L1Loss has no derivative.",)
    assert error.kinks[0] in str(error)
    assert layer_jacobians(nn.ELU(1.0), torch.zeros(2)).kinks == ()


def test_summary_makes_a_report():
    page = to_html(worked().summary())
    for text in ("J(0; weight)", "I_3 (x) row of 2", "Singular values", "(1 x 2) · (2 x 3)"):
        assert text in page


def test_operators_report_their_shapes():
    cases = [
        (DenseJacobian(draw(2, 3)), "2 x 3, dense", 6),
        (DiagonalJacobian(draw(3)), "3 x 3, diagonal", 3),
        (IdentityJacobian(4), "4 x 4, identity", 0),
        (SelectionJacobian(torch.tensor([1, 1]), 3), "2 x 3, selection", 0),
        (BlockJacobian(draw(1, 2, 1), 3), "6 x 3, I_3 (x) column of 2", 6),
        (BlockJacobian(draw(2, 2, 3), 2), "8 x 12, 2 blocks of 2 x 3, each 2 times", 24),
        (
            LowRankJacobian(draw(1, 4), draw(1, 4, 2), draw(1, 4, 2)),
            "4 x 4, diagonal + rank 2",
            20,
        ),
        (
            SparseJacobian(
                torch.tensor([0]), torch.tensor([1]), draw(1), (2, 2), "block Toeplitz"
            ),
            "2 x 2, block Toeplitz",
            1,
        ),
        (ResidualJacobian([DenseJacobian(draw(3, 3))], 3), "3 x 3, identity + product of 1", 9),
    ]
    for operator, text, cost in cases:
        assert repr(operator) == text
        assert operator.cost == cost


def shared_layer():
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.Tanh(), layer)


class Recurrent(nn.Module):
    def forward(self, x):
        return x


X2 = torch.ones(2)
SUPPORTED = (
    "AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, BatchNorm1d, BatchNorm2d, "
    "Conv1d, Conv2d, "
    "Dropout, Dropout1d, Dropout2d, ELU, Flatten, GELU, GroupNorm, Hardtanh, Identity, "
    "InstanceNorm1d, InstanceNorm2d, LayerNorm, LeakyReLU, Linear, LogSigmoid, LogSoftmax, "
    "MaxPool1d, MaxPool2d, ReLU, ReLU6, Residual, Sequential, SiLU, Sigmoid, Softmax, Softplus, "
    "Softsign, Tanh, Unflatten"
)
NO_RULE = (
    "\nhint: Write the model as a `torch.nn.Sequential` of supported layers, with "
    "`ellzero.backprop.Residual` for x + f(x), or give a rule in `rules`. Supported: "
    f"{SUPPORTED}."
)
MESSAGES = {
    "no module": (lambda: layer_jacobians(len, X2),
        "`model` must be a torch.nn.Module, got builtin_function_or_method."),
    "integers": (lambda: layer_jacobians(nn.ReLU(), torch.ones(2, dtype=torch.int64)),
        "`x` must be a tensor of floating-point numbers, got torch.int64."),
    "list": (lambda: layer_jacobians(nn.ReLU(), [1.0]),
        "`x` must be a tensor of floating-point numbers, got list."),
    "nan": (lambda: layer_jacobians(nn.ReLU(), torch.tensor([torch.nan])),
        "`x` must be finite, got NaN or infinity."),
    "no rule": (lambda: layer_jacobians(nn.Sequential(nn.ReLU(), Recurrent()), X2),
        f"Layer '1' (Recurrent) has no Jacobian rule.{NO_RULE}"),
    "lstm": (lambda: layer_jacobians(nn.LSTM(2, 2), X2),
        f"Layer 'model' (LSTM) has no Jacobian rule.{NO_RULE}"),
    "batch norm": (lambda: layer_jacobians(nn.Sequential(nn.BatchNorm1d(2)), X2),
        "Layer '0' (BatchNorm1d) is in training mode: its output depends on the batch.\n"
        "hint: Call `model.eval()` first."),
    "dropout": (lambda: layer_jacobians(nn.Sequential(nn.Dropout()), X2),
        "Layer '0' (Dropout) is in training mode: its output is random.\n"
        "hint: Call `model.eval()` first."),
    "no statistics": (
        lambda: layer_jacobians(nn.BatchNorm1d(2, track_running_stats=False).eval(), X2),
        "A layer BatchNorm1d has no running statistics, so that its output depends on the batch, "
        "and there is no rule for that.\n"
        "hint: Use `track_running_stats=True`, or a layer, group or instance norm."),
    "instance statistics": (
        lambda: layer_jacobians(
            nn.InstanceNorm1d(2, track_running_stats=True).eval(), torch.ones(2, 2)),
        "A layer InstanceNorm1d has running statistics, and there is no rule for that.\n"
        "hint: Use `track_running_stats=False`."),
    "tied": (lambda: layer_jacobians(shared_layer(), X2),
        "Parameters '0.weight' and '2.weight' are the same tensor; its derivative is a sum of "
        "products, not one.\n"
        "hint: Give each layer its own parameters; the gradient of the shared one is the sum."),
    "parametrized": (lambda: layer_jacobians(parametrizations.weight_norm(nn.Linear(2, 2)), X2),
        "Layer 'model' (ParametrizedLinear) computes its parameters from others.\n"
        "hint: Call `torch.nn.utils.parametrize.remove_parametrizations` first."),
    "empty": (lambda: layer_jacobians(nn.Sequential(), X2),
        "`model` must have at least one layer, got none."),
    "body": (lambda: layer_jacobians(Residual(nn.Linear(2, 3)), X2),
        "The body of layer 'model' must keep the shape, got (2,) and (3,)."),
    "axis": (lambda: layer_jacobians(nn.Softmax(dim=1), torch.ones(2, 3)),
        "A layer Softmax goes along `dim=1`, and there is no rule for that.\n"
        "hint: Give `dim=-1`; only the last axis is supported."),
    "padding": (
        lambda: layer_jacobians(nn.Conv1d(1, 1, 2, padding=1, padding_mode="circular"),
                                torch.ones(1, 4)),
        "A layer Conv1d pads with 'circular', and there is no rule for that.\n"
        "hint: Use `padding_mode='zeros'`."),
    "same": (lambda: layer_jacobians(nn.Conv1d(1, 1, 3, padding="same"), torch.ones(1, 4)),
        "A layer Conv1d has `padding='same'`, and there is no rule for that.\n"
        "hint: Give the padding as a number."),
    "ceil": (lambda: layer_jacobians(nn.MaxPool1d(2, ceil_mode=True), torch.ones(1, 5)),
        "A layer MaxPool1d has `ceil_mode=True`, and there is no rule for that.\n"
        "hint: Use `ceil_mode=False`, with padding."),
    "indices": (lambda: layer_jacobians(nn.MaxPool1d(2, return_indices=True), torch.ones(1, 4)),
        "A layer MaxPool1d returns indices, and there is no rule for that.\n"
        "hint: Use `return_indices=False`."),
    "flatten": (lambda: layer_jacobians(nn.Flatten(0), torch.ones(2, 4)),
        "A layer Flatten starts at axis 0, inside the batch, and there is no rule for that."),
    "loss": (lambda: layer_jacobians(nn.ReLU(), X2, nn.HuberLoss(), X2),
        "Loss HuberLoss has no Jacobian rule.\nhint: Supported: BCELoss, BCEWithLogitsLoss, "
        "CrossEntropyLoss, HalfSquaredError, L1Loss, MSELoss, NLLLoss."),
    "no target": (lambda: layer_jacobians(nn.ReLU(), X2, nn.MSELoss()),
        "`y` must be given with `loss`, got None."),
    "no loss": (lambda: layer_jacobians(nn.ReLU(), X2, y=X2),
        "`loss` must be given with `y`, got None."),
    "target type": (lambda: layer_jacobians(nn.ReLU(), X2, nn.MSELoss(), 1.0),
        "`y` must be a tensor, got float."),
    "target shape": (lambda: layer_jacobians(nn.ReLU(), X2, nn.MSELoss(), torch.ones(3)),
        "`y` must have the shape (2,) of the output, got (3,).\n"
        "hint: For classes, give the label as a 0-d tensor of integers."),
    "label": (lambda: layer_jacobians(nn.ReLU(), X2, nn.CrossEntropyLoss(), torch.tensor(2)),
        "`y` must be a class between 0 and 1, got 2."),
    "weighted": (
        lambda: layer_jacobians(nn.ReLU(), X2, nn.CrossEntropyLoss(weight=X2), torch.tensor(1)),
        "A layer CrossEntropyLoss has a `weight`, and there is no rule for that.\n"
        "hint: Leave it out."),
    "reduction": (lambda: layer_jacobians(nn.ReLU(), X2, nn.MSELoss(reduction="none"), X2),
        "`loss` must be a number, got `reduction='none'`.\n"
        "hint: Use `reduction='mean'` or `'sum'`."),
    "image": (
        lambda: layer_jacobians(nn.ReLU(), torch.ones(2, 2), nn.CrossEntropyLoss(),
                                torch.tensor(1)),
        "A layer CrossEntropyLoss is given an output of shape (2, 2), and there is no rule for "
        "that."),
    "block": (lambda: layer_jacobians(nn.Linear(2, 1), X2).product("wieght"),
        "Unknown parameter 'wieght'.\nhint: The parameters are weight, bias."),
    "vector": (lambda: layer_jacobians(nn.Linear(2, 2), X2).gradients(),
        "A gradient needs a number, got an output of shape (2,).\n"
        "hint: Pass `loss` and `y` to `layer_jacobians`, or use `product`."),
    "too large": (
        lambda: layer_jacobians(nn.Linear(4000, 200), torch.ones(4000)).product("weight"),
        "The derivative with respect to 'weight' has 160000000 entries, too many to be written "
        "out.\nhint: Give a `loss`, or use `restricted` for some of its columns."),
    "mode": (lambda: layer_jacobians(nn.Linear(2, 1), X2).gradients("bp"),
        "`mode` must be one of 'shared', 'naive', got 'bp'."),
    "order": (lambda: layer_jacobians(nn.Linear(2, 1), X2).multiplications(order="left"),
        "`order` must be one of 'loss', 'input', got 'left'."),
    "mask": (lambda: layer_jacobians(nn.Linear(2, 1), X2).restricted({"bias": X2 > 0}),
        "`masks['bias']` must be a tensor of shape (1,), got (2,)."),
    "batch": (
        lambda: batch_gradients(nn.Linear(2, 2), torch.ones(2, 2), nn.MSELoss(), torch.ones(3, 2)),
        "`X` and `y` must have the same positive number of samples, got 2 and 3."),
}  # fmt: skip


@pytest.mark.parametrize(("call", "text"), MESSAGES.values(), ids=MESSAGES)
def test_messages(call, text):
    with pytest.raises(InvalidParameterError) as error:
        call()
    assert str(error.value) == text


def test_a_sample_of_the_wrong_shape_is_named():
    with pytest.raises(InvalidParameterError) as error:
        layer_jacobians(nn.Sequential(nn.Tanh(), nn.Linear(3, 2)), X2)
    # The reason is torch's own sentence.
    assert error.value.message.startswith(
        "Layer '1' (Linear) does not take a sample of shape (2,): "
    )
    assert error.value.hint == "Give `x` as one sample, without the axis of the batch."
