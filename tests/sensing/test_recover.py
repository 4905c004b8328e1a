"""`recover` against planted signals, enumeration, linear programs and its own promises."""

import itertools

import numpy as np
import pytest
import torch
from scipy.fft import dct, idct
from scipy.optimize import linprog
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from sklearn.linear_model import orthogonal_mp

import ellzero
from ellzero import Claim, Status, recover
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.sensing import dictionaries
from ellzero.sensing.recovery import SOLVERS

# Two roundings of a well-conditioned fit.
EXACT = 1e-12


def planted(seed=0, n=100, n_atoms=200, k=10, law="gaussian"):
    generator = np.random.default_rng(seed)
    D = generator.standard_normal((n, n_atoms))
    support = np.sort(generator.choice(n_atoms, k, replace=False))
    signs = generator.choice([-1.0, 1.0], k)
    x = np.zeros(n_atoms)
    x[support] = signs * (1.0 if law == "sign" else generator.uniform(0.5, 2, k))
    return D, D @ x, x


def coef(result):
    return result.params["coef"].numpy()


def error(result, x):
    return np.linalg.norm(coef(result) - x) / np.linalg.norm(x)


@pytest.mark.parametrize("law", ["uniform", "sign"])
@pytest.mark.parametrize("budget", [10, None])
@pytest.mark.parametrize("solver", [None, *SOLVERS])
def test_every_solver_finds_an_easy_signal(solver, budget, law):
    D, y, x = planted(law=law)
    result = recover(y, D, budget, solver=solver)
    assert error(result, x) < EXACT
    assert result.n_nonzero == 10
    assert result.status is Status.CONVERGED
    assert result.certificate.claim is Claim.OPTIMAL
    assert result.measures["explained"] is True
    if solver is not None:
        assert result.measures["stage"] == solver


@pytest.mark.parametrize("seed", range(12))
def test_tiny_signals_in_noise_are_never_better_than_enumeration(seed):
    generator = np.random.default_rng(seed)
    D = generator.standard_normal((8, 12))
    y = generator.standard_normal(8)
    best = min(
        np.linalg.lstsq(D[:, list(s)], y, rcond=None)[1][0]
        for s in itertools.combinations(range(12), 3)
    )
    values = [recover(y, D, 3, solver=solver).value * 16 for solver in (None, *SOLVERS)]
    assert min(values) >= best * (1 - 1e-9)
    # The portfolio is no worse than the best of its own last stages.
    assert values[0] <= y @ y


@pytest.mark.parametrize("seed", range(12))
def test_tiny_exact_signals_equal_enumeration(seed):
    D, y, x = planted(seed, n=8, n_atoms=12, k=2)
    fits = [
        s
        for s in itertools.combinations(range(12), 2)
        if np.linalg.lstsq(D[:, list(s)], y, rcond=None)[1][0] < 1e-20
    ]
    assert len(fits) == 1
    result = recover(y, D, 2)
    assert tuple(result.support["coef"]) == fits[0]
    assert error(result, x) < 1e-10


@pytest.mark.parametrize(("seed", "k"), [(3, 38), (2, 40)])
def test_signs_beyond_basis_pursuit(seed, k):
    """Message passing recovers what the linear program of basis pursuit does not."""
    D, y, x = planted(seed, n=150, n_atoms=600, k=k, law="sign")
    n_atoms = 600
    program = linprog(np.ones(2 * n_atoms), A_eq=np.hstack([D, -D]), b_eq=y, method="highs")
    least = program.x[:n_atoms] - program.x[n_atoms:]
    assert np.linalg.norm(least - x) > 0.1 * np.linalg.norm(x)
    assert error(recover(y, D, k), x) < EXACT


def test_basis_pursuit_is_the_linear_program():
    D, y, _ = planted(1, n=40, n_atoms=80, k=25)
    program = linprog(np.ones(160), A_eq=np.hstack([D, -D]), b_eq=y, method="highs")
    lengths = np.linalg.norm(D, axis=0)
    weighted = linprog(np.tile(lengths, 2), A_eq=np.hstack([D, -D]), b_eq=y, method="highs")
    from ellzero.sensing.pursuits import basis_pursuit

    size = np.linalg.norm(y)
    found, _ = basis_pursuit(dictionaries.make_dictionary(D), y / size, max_iter=5000)
    assert np.abs(found).sum() * size == pytest.approx(weighted.fun, rel=1e-5)
    assert program.status == 0


def test_denoising_reaches_the_allowed_residual():
    from ellzero.sensing.pursuits import basis_pursuit

    D, y, _ = planted(2, n=40, n_atoms=80, k=5)
    atoms = dictionaries.make_dictionary(D)
    y = y / np.linalg.norm(y)
    found, _ = basis_pursuit(atoms, y, radius=0.1, max_iter=5000)
    # At the optimum the constraint is active and the correlations are level on the support.
    residual = y - atoms.times(found[:, None])[:, 0]
    assert np.linalg.norm(residual) == pytest.approx(0.1, rel=1e-5)
    slope = atoms.adjoint(residual[:, None])[:, 0]
    on = np.abs(found) > 1e-6
    assert np.abs(slope[on]) == pytest.approx(np.abs(slope).max(), rel=1e-4)
    assert (np.sign(slope[on]) == np.sign(found[on])).all()


def test_omp_agrees_with_scikit_learn():
    generator = np.random.default_rng(4)
    D = generator.standard_normal((60, 120))
    D /= np.linalg.norm(D, axis=0)
    y = generator.standard_normal(60)
    theirs = orthogonal_mp(D, y, n_nonzero_coefs=8)
    ours = coef(recover(y, D, 8, solver="omp"))
    assert ours == pytest.approx(theirs, abs=1e-10)


# Dictionaries ------------------------------------------------------------------------------------


def test_a_subsampled_cosine_transform():
    generator = np.random.default_rng(0)
    D = dct(np.eye(400), norm="ortho", axis=0)[generator.choice(400, 120, replace=False)]
    x = np.zeros(400)
    x[generator.choice(400, 35, replace=False)] = generator.standard_normal(35)
    assert error(recover(D @ x, D, 35), x) < EXACT


def test_correlated_atoms_where_plain_message_passing_diverges():
    generator = np.random.default_rng(0)
    D = generator.standard_normal((150, 400))
    for j in range(1, 400):
        D[:, j] = 0.8 * D[:, j - 1] + 0.6 * D[:, j]
    x = np.zeros(400)
    x[generator.choice(400, 25, replace=False)] = generator.standard_normal(25)
    assert error(recover(D @ x, D, 25, solver="amp"), x) > 0.1
    result = recover(D @ x, D, 25)
    assert error(result, x) < EXACT
    assert result.measures["stage"] != "amp"


def test_message_passing_is_not_believed_on_correlated_atoms():
    generator = np.random.default_rng(2)
    D = generator.standard_normal((250, 700))
    for j in range(1, 700):
        D[:, j] = 0.9 * D[:, j - 1] + np.sqrt(1 - 0.9**2) * D[:, j]
    for seed in range(4):
        generator = np.random.default_rng(seed)
        x = np.zeros(700)
        x[generator.choice(700, 40, replace=False)] = generator.choice([-1.0, 1.0], 40)
        assert error(recover(D @ x, D, 40), x) < EXACT


def test_an_ill_conditioned_dictionary():
    generator = np.random.default_rng(1)
    u = np.linalg.qr(generator.standard_normal((120, 120)))[0]
    v = np.linalg.qr(generator.standard_normal((400, 120)))[0]
    D = u * np.geomspace(1, 1e-3, 120) @ v.T
    x = np.zeros(400)
    x[generator.choice(400, 20, replace=False)] = generator.standard_normal(20)
    # The condition number costs three digits.
    assert error(recover(D @ x, D, 20), x) < 1e-9


def test_more_samples_than_atoms():
    D, y, x = planted(5, n=300, n_atoms=100, k=12)
    noisy = y + 0.01 * np.random.default_rng(0).standard_normal(300)
    assert error(recover(y, D, 12), x) < EXACT
    assert set(recover(noisy, D, 12).support["coef"]) == set(np.flatnonzero(x))


@pytest.mark.parametrize("solver", [None, *SOLVERS])
def test_a_small_operator_is_its_matrix(solver):
    D, y, _ = planted(6)
    by_matrix = recover(y, D, 10, solver=solver)
    by_operator = recover(y, aslinearoperator(D), 10, solver=solver)
    assert torch.equal(by_matrix.params["coef"], by_operator.params["coef"])
    by_sparse = recover(y, csr_array(D), 10, solver=solver)
    assert torch.equal(by_matrix.params["coef"], by_sparse.params["coef"])


class Cosine:
    """Some rows of the cosine transform, with no more than the two products."""

    def __init__(self, rows, n_atoms):
        self.rows, self.shape = rows, (rows.size, n_atoms)
        self.n_products = 0

    def matvec(self, x):
        self.n_products += 1
        return dct(x, norm="ortho")[self.rows]

    def rmatvec(self, r):
        self.n_products += 1
        full = np.zeros(self.shape[1])
        full[self.rows] = r
        return idct(full, norm="ortho")


def test_a_large_operator_by_its_products():
    generator = np.random.default_rng(0)
    operator = Cosine(np.sort(generator.choice(16384, 4096, replace=False)), 16384)
    assert dictionaries.DENSE_LIMIT < 4096 * 16384
    x = np.zeros(16384)
    x[generator.choice(16384, 500, replace=False)] = generator.standard_normal(500)
    y = operator.matvec(x)
    result = recover(y, operator, 500)
    assert error(result, x) < 1e-10
    assert operator.n_products < 500
    assert result.measures["unique"] == "not examined: the dictionary is an operator"


@pytest.mark.parametrize("solver", ["amp", "vamp", "bp", None])
def test_products_give_what_the_matrix_gives(monkeypatch, solver):
    generator = np.random.default_rng(2)
    operator = Cosine(np.sort(generator.choice(256, 100, replace=False)), 256)
    x = np.zeros(256)
    x[generator.choice(256, 15, replace=False)] = generator.standard_normal(15)
    y = operator.matvec(x)
    monkeypatch.setattr(dictionaries, "DENSE_LIMIT", 0)
    assert error(recover(y, operator, 15, solver=solver), x) < 1e-10


def test_solvers_that_need_entries_say_so(monkeypatch):
    D, y, _ = planted(7)
    monkeypatch.setattr(dictionaries, "DENSE_LIMIT", 0)
    with pytest.raises(IncompatibleError) as caught:
        recover(y, aslinearoperator(D), 10, solver="omp")
    assert str(caught.value) == (
        "`solver='omp'` needs the entries of the dictionary, got an operator of shape (100, 200), "
        'too large for a matrix.\nhint: Pass `solver="amp"` or None, which use products only.'
    )
    with pytest.raises(IncompatibleError, match="needs orthogonal rows or the entries"):
        recover(y, aslinearoperator(D), 10, solver="vamp")


# Signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [None, "amp", "vamp", "fbp", "bp", "htp"])
def test_a_batch_is_its_signals(solver):
    D, first, _ = planted(8)
    generator = np.random.default_rng(9)
    others = np.zeros((200, 3))
    for j, k in enumerate((3, 8, 20)):
        others[generator.choice(200, k, replace=False), j] = generator.standard_normal(k)
    signals = np.column_stack([first, D @ others * [1e-6, 1.0, 1e6]])
    result = recover(signals, D, 20, solver=solver)
    assert result.params["coef"].shape == (4, 200)
    for j in range(4):
        alone = recover(signals[:, j], D, 20, solver=solver)
        # Products of several columns are summed in another order.
        size = np.abs(coef(alone)).max()
        assert coef(result)[j] == pytest.approx(coef(alone), abs=1e-9 * size)


@pytest.mark.parametrize("solver", [None, *SOLVERS])
@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e9, 1e12])
def test_the_scale_of_the_signal_does_not_matter(solver, scale):
    D, y, x = planted(10)
    noisy = y + 0.05 * np.random.default_rng(1).standard_normal(100)
    plain = recover(noisy, D, 10, solver=solver)
    scaled = recover(noisy * scale, D, 10, solver=solver)
    assert scaled.support == plain.support
    assert coef(scaled) == pytest.approx(coef(plain) * scale, rel=1e-9)
    known = recover(noisy * scale, D, 10, solver=solver, noise=0.05 * scale)
    assert set(known.support["coef"]) == set(np.flatnonzero(x))


@pytest.mark.parametrize("solver", [None, *SOLVERS])
def test_the_lengths_of_atoms_do_not_matter(solver):
    D, y, x = planted(11)
    lengths = 10.0 ** np.random.default_rng(0).uniform(-9, 9, 200)
    result = recover(y, D * lengths, 10, solver=solver)
    assert coef(result) * lengths == pytest.approx(x, abs=1e-10)


def test_permuted_atoms_give_a_permuted_answer():
    D, y, _ = planted(12, k=20)
    noisy = y + 0.1 * np.random.default_rng(1).standard_normal(100)
    order = np.random.default_rng(2).permutation(200)
    plain, shuffled = recover(noisy, D, 20), recover(noisy, D[:, order], 20)
    assert coef(shuffled) == pytest.approx(coef(plain)[order], rel=1e-8)


def test_the_same_bits_on_every_run():
    D, y, _ = planted(13, k=30)
    noisy = y + 0.1 * np.random.default_rng(1).standard_normal(100)
    first, second = recover(noisy, D, 30), recover(noisy, D, 30)
    assert torch.equal(first.params["coef"], second.params["coef"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_keep_their_type(dtype):
    D, y, x = planted(14)
    result = recover(torch.from_numpy(y).to(dtype), torch.from_numpy(D).to(dtype), 10)
    assert result.params["coef"].dtype is dtype
    assert error(result, x) < (1e-5 if dtype is torch.float32 else EXACT)
    assert result.measures["explained"] is True


def test_noise_of_known_level_gives_the_number_of_nonzeros():
    D, y, x = planted(15)
    sigma = 0.1
    noisy = y + sigma * np.random.default_rng(3).standard_normal(100)
    result = recover(noisy, D, noise=sigma)
    assert result.support["coef"] == np.flatnonzero(x).tolist()
    # The length of the residual is that of the noise less what ten coefficients take up.
    assert result.value == pytest.approx(sigma**2 * 90 / 200, rel=0.5)
    assert result.certificate.claim is Claim.FEASIBLE


def test_noise_of_unknown_level():
    D, y, x = planted(16)
    noisy = y + 0.1 * np.random.default_rng(4).standard_normal(100)
    result = recover(noisy, D)
    assert result.support["coef"] == np.flatnonzero(x).tolist()
    oracle = np.linalg.lstsq(D[:, x != 0], noisy, rcond=None)[0]
    assert coef(result)[x != 0] == pytest.approx(oracle, rel=1e-10)


def test_pure_noise_is_not_taken_for_a_signal():
    generator = np.random.default_rng(5)
    D, y = generator.standard_normal((100, 200)), generator.standard_normal(100)
    result = recover(y, D, 10, noise=0.0)
    assert result.status is Status.STALLED
    assert result.measures["explained"] is False
    assert result.certificate.claim is Claim.FEASIBLE
    # Without a budget as many atoms as samples would fit anything.
    assert recover(y, D).n_nonzero < 100


def test_zero_signals_and_zero_budgets():
    D, y, _ = planted(17)
    nothing = recover(np.zeros(100), D, 10)
    assert nothing.n_nonzero == 0
    assert nothing.value == 0
    assert nothing.certificate.claim is Claim.OPTIMAL
    empty = recover(y, D, 0)
    assert empty.n_nonzero == 0
    assert empty.value == pytest.approx(y @ y / 200)
    both = recover(np.column_stack([y, 0 * y]), D, 10)
    assert both.n_nonzero == 10


def test_equal_atoms_share_no_coefficient():
    D, y, _ = planted(18)
    doubled = np.hstack([D, D])
    result = recover(y, doubled, 10)
    assert result.n_nonzero == 10
    assert result.measures["relative_residual"] < EXACT


@pytest.mark.parametrize("solver", [None, *SOLVERS])
def test_dependent_atoms_leave_least_squares_on_fewer(solver):
    # Of rank 2, so that two atoms do what all of them do.
    generator = np.random.default_rng(4)
    D = generator.standard_normal((22, 2)) @ generator.standard_normal((2, 47))
    y = generator.standard_normal(22)
    result = recover(y, D, 6, solver=solver)
    assert result.n_nonzero == 2
    least = np.linalg.lstsq(D, y, rcond=None)[0]
    assert result.value == pytest.approx(np.square(y - D @ least).sum() / 44, rel=1e-9)
    assert result.certificate.claim is Claim.FEASIBLE


def test_noise_shorter_than_any_residual():
    D, y, _ = planted(23, n=40, n_atoms=10, k=3)
    noisy = y + np.random.default_rng(0).standard_normal(40)
    result = recover(noisy, D, 10, solver="bp", noise=1e-3)
    least = np.linalg.lstsq(D, noisy, rcond=None)[0]
    assert coef(result) == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("faint", [1e-2, 1e-4, 1e-6])
def test_a_faint_coefficient_is_not_taken_for_noise(faint):
    D, _, x = planted(24, n=200, n_atoms=500, k=40)
    x[np.flatnonzero(x)[7]] = faint
    result = recover(D @ x, D, 40)
    assert error(result, x) < EXACT
    assert result.certificate.claim is Claim.OPTIMAL


def test_one_sample_and_one_atom():
    assert coef(recover([3.0], [[2.0]], 1)) == pytest.approx([1.5])
    assert coef(recover([3.0, 6.0], [[1.0], [2.0]], 1)) == pytest.approx([3.0])
    assert recover([3.0], [[2.0, 1.0, 4.0]], 1).measures["relative_residual"] < EXACT


# What is proven ----------------------------------------------------------------------------------


def test_coherence_proves_uniqueness_where_it_does():
    # Spikes and cosines: coherence sqrt(2 / n), so that 5 nonzeros of 256 are unique.
    n = 256
    D = np.hstack([np.eye(n), idct(np.eye(n), norm="ortho", axis=0)])
    mu = np.abs(D.T @ D - np.eye(2 * n)).max()
    most = int(np.ceil((1 + 1 / mu) / 2)) - 1
    for k, proven in ((most, True), (most + 1, False)):
        x = np.zeros(2 * n)
        x[np.linspace(3, 2 * n - 5, k).astype(int)] = 1 + np.arange(k)
        result = recover(D @ x, D, k)
        assert error(result, x) < EXACT
        assert result.measures["unique"].startswith("proven") is proven
        if proven:
            assert result.measures["coherence"] == pytest.approx(mu, rel=1e-12)


def test_no_uniqueness_past_half_of_the_samples():
    D, y, _ = planted(19, n=20, n_atoms=40, k=11)
    assert recover(y, D, 11).measures["unique"].startswith("not proven")


def test_exact_recovery_coefficient_by_its_definition():
    D, y, x = planted(20, n=60, n_atoms=80, k=3)
    D = D / np.linalg.norm(D, axis=0)
    y = D @ x
    support = np.flatnonzero(x)
    rest = np.setdiff1d(np.arange(80), support)
    expected = np.abs(np.linalg.pinv(D[:, support]) @ D[:, rest]).sum(0).max()
    result = recover(y, D, 3)
    assert result.measures["exact_recovery"] == pytest.approx(expected, rel=1e-9)
    assert expected < 1
    # Below one orthogonal matching pursuit must succeed, whatever the amplitudes.
    for scale in (1e-3, 1.0, 1e3):
        signal = D[:, support] @ np.array([1.0, scale, -1.0])
        assert recover(signal, D, 3, solver="omp").support["coef"] == support.tolist()


def test_a_wrong_answer_is_not_certified():
    from ellzero.sensing.proof import prove

    D, y, x = planted(21)
    atoms = dictionaries.make_dictionary(D)
    y = y / np.linalg.norm(y)
    support = np.flatnonzero(x)
    right = atoms.refit(y, support)
    assert prove(atoms, y[:, None], [(support, right)], 10)[0].claim is Claim.OPTIMAL
    nudged = right * np.where(np.arange(10) == 3, 1 + 1e-9, 1)
    assert prove(atoms, y[:, None], [(support, nudged)], 10)[0].claim is not Claim.OPTIMAL
    fewer = support[1:]
    other = prove(atoms, y[:, None], [(fewer, atoms.refit(y, fewer))], 10)[0]
    assert other.claim is Claim.FEASIBLE
    assert prove(atoms, y[:, None], [(support, right)], 9)[0].claim is None


# Wrong input -------------------------------------------------------------------------------------


def _nan(D):
    D = D.copy()
    D[2, 5] = np.nan
    D[3, 7] = np.inf
    return D


def _no_atom(D):
    D = D.copy()
    D[:, [4, 9]] = 0
    return D


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda y, D: ((y[:-1], D, 3), {}),
            "`dictionary` and `y` must have the same number of samples, got 20 and 19."
            "\nhint: Signals are columns of `y`, (n_samples, m).",
        ),
        (
            lambda y, D: ((y[None, None], D, 3), {}),
            "`y` must have 1 or 2 axes, got shape (1, 1, 20).",
        ),
        (
            lambda y, D: ((y[:, None][:, :0], D, 3), {}),
            "`y` must hold at least one signal, got none.",
        ),
        (
            lambda y, D: ((y, D[0], 3), {}),
            "`dictionary` must have 2 axes, (n_samples, n_atoms), got shape (40,).",
        ),
        (
            lambda y, D: ((y, D[:, :0], 3), {}),
            "`dictionary` must have at least one row and one column, got shape (20, 0).",
        ),
        (
            lambda y, D: ((y, D, 21), {}),
            "`n_nonzero` must be an integer between 0 and 20, the smaller side of `dictionary`, "
            "got 21.",
        ),
        (
            lambda y, D: ((y, D, -1), {}),
            "`n_nonzero` must be an integer between 0 and 20, the smaller side of `dictionary`, "
            "got -1.",
        ),
        (
            lambda y, D: ((y, _no_atom(D), 3), {}),
            "`dictionary` must not have atoms of zeros, got column 4, 9."
            "\nhint: Drop these columns.",
        ),
        (
            lambda y, D: ((y, _nan(D), 3), {}),
            "`dictionary` must be finite, got NaN or infinity in column 5, 7."
            "\nhint: Drop or fill these values first.",
        ),
        (
            lambda y, D: ((np.where(np.arange(20) == 3, np.nan, y), D, 3), {}),
            "`y` must be finite, got NaN or infinity.\nhint: Drop these samples first.",
        ),
        (
            lambda y, D: ((y, D * 1j, 3), {}),
            "`dictionary` must be real, got complex128."
            "\nhint: Stack the real and the imaginary parts.",
        ),
        (
            lambda y, D: ((y, D.astype(str), 3), {}),
            "`dictionary` must hold numbers, got <U32.",
        ),
        (
            lambda y, D: ((y, D, 3), {"noise": -1.0}),
            "`noise` must be a number of at least 0, got -1.",
        ),
        (
            lambda y, D: ((y, D, 3), {"solver": "opm"}),
            "`solver` must be one of 'amp', 'vamp', 'fbp', 'sp', 'cosamp', 'htp', 'niht', 'omp', "
            "'bp', 'search', got 'opm'. Did you mean 'omp'?",
        ),
        (
            lambda y, D: (
                (y, LinearOperator((20, 40), matvec=lambda v: v[:20] + 0j, dtype=complex), 3),
                {},
            ),
            "`dictionary` must be real, got complex128."
            "\nhint: Stack the real and the imaginary parts.",
        ),
    ],
)
def test_messages(change, message):
    D, y, _ = planted(22, n=20, n_atoms=40, k=3)
    args, kwargs = change(y, D)
    with pytest.raises(InvalidParameterError) as caught:
        recover(*args, **kwargs)
    assert str(caught.value) == message


def test_an_operator_of_zeros_is_refused(monkeypatch):
    monkeypatch.setattr(dictionaries, "DENSE_LIMIT", 0)
    nothing = LinearOperator(
        (5, 8), matvec=lambda v: np.zeros(5), rmatvec=lambda v: np.zeros(8), dtype=float
    )
    with pytest.raises(InvalidParameterError) as caught:
        recover(np.ones(5), nothing, 1)
    assert str(caught.value) == (
        "`dictionary` must give finite products that are not all zero."
        "\nhint: Check `rmatvec` of the operator."
    )


def test_it_is_public():
    assert ellzero.recover is recover
