"""What is proven of recovered signals, from the data and the coefficients alone."""

from __future__ import annotations

import numpy as np
from scipy import linalg

from ellzero.core.result import Certificate, Check, Claim, Measure
from ellzero.sensing.dictionaries import Dictionary, Floats, Integers

EPS = float(np.finfo(np.float64).eps)
# Correlation with an atom of the support, relative to the signal, that counts as zero.
ORTHOGONAL = 1e-10
# Signals up to which every support is examined by itself.
FEW = 16


def _rounding(dictionary: Dictionary, y: Floats, support: Integers, coef: Floats) -> float:
    """Return how long the computed residual of an exact representation may be.

    The standard bound of a sum of products: terms + 2 roundings of the sum of magnitudes. The
    coefficients carry roundings of their own, which the factor covers.
    """
    if dictionary.matrix is None:
        terms = np.sqrt(dictionary.n_atoms) * float(np.linalg.norm(coef))
        return 32 * EPS * float(terms + np.linalg.norm(y))
    sums = np.abs(dictionary.columns(support)) @ np.abs(coef) + np.abs(y)
    return (support.size + 8) * EPS * float(np.linalg.norm(sums))


def exact_recovery(cross: Floats, block: Floats, support: Integers) -> float:
    """Return the exact recovery coefficient of a support.

    Parameters
    ----------
    cross : ndarray of shape (n_atoms, k)
        Products of all atoms with those of the support.
    block : ndarray of shape (k, k)
        Products within the support.
    support : ndarray of shape (k,)
        Atoms.

    Returns
    -------
    float
        The largest sum of magnitudes with which the support represents another atom; infinity
        when the support is dependent. Below 1, orthogonal matching pursuit and basis pursuit
        recover every signal with this support.

    References
    ----------
    .. [1] J. A. Tropp, "Greed is good: algorithmic results for sparse approximation", IEEE Trans.
       Inf. Theory, 2004.
    """
    if support.size == 0:
        return 0.0
    try:
        factor = np.linalg.cholesky(block)
    except np.linalg.LinAlgError:
        return float("inf")
    half = linalg.solve_triangular(factor, cross.T, lower=True)
    sums = np.abs(linalg.solve_triangular(factor, half, lower=True, trans=1)).sum(0)
    sums[support] = 0
    return float(sums.max())


def _uniqueness(dictionary: Dictionary, supports: list[Integers]) -> dict[str, Measure]:
    """Return what is known of other signals as sparse that give the same measurements."""
    if dictionary.matrix is None:
        return {"unique": "not examined: the dictionary is an operator"}
    most = max(s.size for s in supports)
    union = np.unique(np.concatenate(supports))
    cross = dictionary.adjoint(dictionary.columns(union))
    outside = np.abs(cross)
    outside[union, np.arange(union.size)] = 0
    # Some atoms bound the coherence from below; all of them are needed only for a proof.
    coherence = float(outside.max(initial=0.0))
    complete = False
    if 2 * most - 1 < 1 / max(coherence, 1e-300):
        products = np.abs(dictionary.gram)
        np.fill_diagonal(products, 0)
        coherence, complete = float(products.max()), True
    out: dict[str, Measure] = {"coherence": coherence, "coherence_is_exact": complete}
    # Rounding of the products is far below the margin asked for.
    if complete and most < (1 + 1 / max(coherence + 1e-12, 1e-300)) / 2:
        nouns = "1 nonzero is" if most == 1 else f"{most} nonzeros are"
        out["unique"] = f"proven: {nouns} fewer than (1 + 1 / coherence) / 2"
    elif 2 * most > dictionary.n_samples:
        out["unique"] = (
            "not proven: more nonzeros than half the samples, the most that any dictionary allows"
        )
    else:
        out["unique"] = (
            f"not proven: true if every {2 * most} atoms are independent, which is not checked"
        )
    if len(supports) > FEW:
        return out
    worst, spread = 0.0, 1.0
    for support in supports:
        where = np.searchsorted(union, support)
        part = cross[:, where]
        block = part[support]
        if support.size:
            low, high = linalg.eigvalsh(block)[[0, -1]]
            ratio = np.sqrt(high / low) if low > 0 else np.inf
            spread = max(spread, float(ratio))
        worst = max(worst, exact_recovery(part, block, support))
    out["exact_recovery"] = worst
    out["support_condition"] = spread
    return out


def prove(
    dictionary: Dictionary,
    y: Floats,
    answers: list[tuple[Integers, Floats]],
    n_nonzero: int | None,
) -> tuple[Certificate, dict[str, Measure]]:
    """Certify recovered signals.

    Parameters
    ----------
    dictionary : Dictionary
        Atoms of length one.
    y : ndarray of shape (n_samples, m)
        Signals of length one.
    answers : list of (ndarray, ndarray)
        Support and coefficients of each.
    n_nonzero : int or None
        Budget; None where there was none.

    Returns
    -------
    certificate : Certificate
        Feasible; optimal where every residual is zero up to rounding.
    measures : dict of str to number or str
        Uniqueness: coherence, exact recovery coefficient, condition of the support.
    """
    sizes = [int(support.size) for support, _ in answers]
    most = max(sizes)
    budget = most if n_nonzero is None else n_nonzero
    checks = [
        Check("nonzero entries of a signal", most, budget),
    ]
    full = np.zeros((dictionary.n_atoms, len(answers)))
    for j, (support, coef) in enumerate(answers):
        full[support, j] = coef
    residual = y - dictionary.times(full)
    lengths = np.sqrt(np.square(residual).sum(0))
    slope = dictionary.adjoint(residual)
    on = max(
        (float(np.abs(slope[s, j]).max(initial=0.0)) for j, (s, _) in enumerate(answers)),
        default=0.0,
    )
    checks.append(Check("largest correlation on the support, least squares", on, ORTHOGONAL))
    bounds = np.array([_rounding(dictionary, y[:, j], s, c) for j, (s, c) in enumerate(answers)])
    worst = int(np.argmax(lengths - bounds))
    zero = Check(
        "length of the residual over that of the signal, against rounding",
        float(lengths[worst]),
        float(bounds[worst]),
        Claim.OPTIMAL,
    )
    checks.append(zero)
    feasible = all(check.passed for check in checks[:2])
    claim = None if not feasible else Claim.OPTIMAL if zero.passed else Claim.FEASIBLE
    assumptions = ["Everything is computed in float64, up to rounding."]
    if zero.passed:
        assumptions.append("The objective is at zero, its least possible value.")
    certificate = Certificate(
        claim,
        tuple(checks),
        tuple(assumptions),
        lower_bound=0.0,
        gap=0.0 if zero.passed else 1.0,
    )
    return certificate, _uniqueness(dictionary, [s for s, _ in answers])
