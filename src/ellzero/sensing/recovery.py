"""`recover`: sparse signals from few linear measurements."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ellzero.core.result import Measure, Result, Status
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.sensing.dictionaries import (
    Dictionary,
    Floats,
    Integers,
    check_numbers,
    make_dictionary,
    to_array,
)
from ellzero.sensing.message_passing import BELIEVED, Estimate, amp, vector_amp
from ellzero.sensing.proof import prove
from ellzero.sensing.pursuits import (
    basis_pursuit,
    by_search,
    by_solver,
    forward_backward,
    largest,
)
from ellzero.solvers import HTP, NIHT, OMP, CoSaMP, SubspacePursuit
from ellzero.validation import check_choice, check_integer, check_real

SOLVERS = ("amp", "vamp", "fbp", "sp", "cosamp", "htp", "niht", "omp", "bp", "search")
# Solvers that ask a dictionary for products only.
BY_PRODUCTS = ("amp",)
# Residual, relative to the signal, that counts as zero in a search: by the precision of the data.
ZERO = {8: 1e-9, 4: 3e-6, 2: 3e-3}
# Coefficients below this share of the largest are rounding where the residual is zero.
ROUNDING = 1e-9
# Share of the largest coefficient above which basis pursuit means a nonzero.
SMALL = 1e-3
# Relative residual below which it may come from coefficients too small to be seen, not noise,
FAINT = 5e-3
# and atoms that are then tried.
EXCHANGED = 20
# Samples from which independent entries behave as in the limit.
TYPICAL = 200


@dataclass(slots=True)
class _Answer:
    """One signal's answer, in units in which signal and atoms have length one."""

    support: Integers
    coef: Floats
    residual: float
    stage: str
    n_iter: int
    accepted: bool = False


@dataclass(slots=True)
class _Case:
    """What the stages share."""

    dictionary: Dictionary
    n_nonzero: int | None
    zero: float
    noise: float | None

    def length_of_noise(self) -> float | None:
        """Length of noise that is still likely, or None when it is not known."""
        if self.noise is None:
            return None
        n = self.dictionary.n_samples
        return self.noise * float(np.sqrt(n + 2 * np.sqrt(2 * n)))

    def fits(self, residual: float, size: int) -> bool:
        """Whether a residual is zero, or no longer than the noise, and says something.

        As many atoms as samples represent any signal: without a budget that is no recovery.
        """
        if self.n_nonzero is None and size >= self.dictionary.n_samples:
            return False
        return residual <= max(self.zero, self.length_of_noise() or 0.0)

    def score(self, answer: _Answer) -> float:
        """Return what ranks answers that are not accepted, the less the better.

        The residual; without a budget an information criterion that weighs it against the size.
        """
        if self.n_nonzero is not None:
            return answer.residual
        n, n_atoms = self.dictionary.n_samples, self.dictionary.n_atoms
        if answer.support.size >= n:
            return float("inf")
        fit = n * np.log(answer.residual**2 + self.zero**2)
        return float(fit + 2 * answer.support.size * np.log(n_atoms))

    def answer(self, y: Floats, support: Integers, stage: str, n_iter: int) -> _Answer:
        """Fit on a support; drop what is zero, where the residual tells."""
        support, coef, error = self._fit(y, support)
        if self.n_nonzero is not None:
            # Dependent atoms have left room in the budget.
            while support.size < self.n_nonzero and np.linalg.norm(error) > self.zero:
                score = np.abs(self.dictionary.adjoint(error[:, None])[:, 0])
                score[support] = 0
                wider = self._fit(y, np.sort(np.append(support, np.argmax(score))))
                if wider[0].size <= support.size:
                    break
                support, coef, error = wider
        residual = float(np.linalg.norm(error))
        return _Answer(support, coef, residual, stage, n_iter, self.fits(residual, support.size))

    def _fit(self, y: Floats, support: Integers) -> tuple[Integers, Floats, Floats]:
        coef = self.dictionary.refit(y, support)
        if coef.size:
            small = np.abs(coef) <= ROUNDING * np.abs(coef).max()
            if small.any():
                support = support[~small]
                coef = self.dictionary.refit(y, support)
        return support, coef, y - self._image(support, coef)

    def exchange(self, y: Floats, answer: _Answer) -> _Answer:
        """Return the answer after one exchange of many atoms, where that leaves no residual.

        A coefficient far below the others looks like noise to message passing.
        """
        correlations = self.dictionary.adjoint(
            (y - self._image(answer.support, answer.coef))[:, None]
        )[:, 0]
        correlations[answer.support] = 0
        near = largest(correlations, EXCHANGED)
        wide, coef, _ = self._fit(y, np.sort(np.concatenate([answer.support, near])))
        most = wide.size if self.n_nonzero is None else self.n_nonzero
        kept = wide[largest(coef, most)]
        other = self.answer(y, kept, answer.stage, answer.n_iter)
        return other if other.residual <= self.zero else answer

    def _image(self, support: Integers, coef: Floats) -> Floats:
        full = np.zeros((self.dictionary.n_atoms, 1))
        full[support, 0] = coef
        return self.dictionary.times(full)[:, 0]

    def nothing(self) -> _Answer:
        """Return the answer without any atom."""
        return _Answer(np.zeros(0, np.int64), np.zeros(0), 1.0, "none", 0)


def _believed(case: _Case, estimate: Estimate, j: int, answer: _Answer) -> bool:
    """Whether message passing explains the residual by noise that it knows well."""
    # On other dictionaries its own account of the error has been seen to be wrong.
    theory = case.dictionary.looks_independent or case.dictionary.has_orthogonal_rows
    if case.noise is not None or not theory or estimate.error[j] > BELIEVED:
        return False
    explained = float(np.sqrt(estimate.noise[j] * case.dictionary.n_samples))
    return bool(estimate.settled[j]) and answer.residual <= 1.5 * max(explained, case.zero)


def _choose(case: _Case, estimate: Estimate, j: int) -> Integers:
    """Return the atoms that message passing holds for nonzero."""
    if case.n_nonzero is not None:
        return largest(estimate.mean[:, j], case.n_nonzero)
    likely = np.flatnonzero(estimate.inclusion[:, j] > 0.5)
    most = min(case.dictionary.n_samples, case.dictionary.n_atoms)
    if likely.size > most:
        return largest(estimate.mean[:, j], most)
    return likely


def _pass_messages(
    case: _Case,
    signals: Floats,
    best: list[_Answer],
    method: Callable[..., Estimate],
    stage: str,
    **settings: Any,
) -> None:
    """Run message passing on the signals that have no accepted answer yet."""
    open_ = [j for j, answer in enumerate(best) if not answer.accepted]
    if not open_:
        return
    # Divergence is noticed and reported by the estimate.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        estimate = method(
            case.dictionary, signals[:, open_], case.n_nonzero, noise=case.noise, **settings
        )
    for i, j in enumerate(open_):
        support = _choose(case, estimate, i)
        answer = case.answer(signals[:, j], support, stage, int(estimate.n_iter[i]))
        if case.zero < answer.residual < FAINT and not case.noise:
            answer = case.exchange(signals[:, j], answer)
        answer.accepted |= _believed(case, estimate, i, answer)
        _keep(case, best, j, answer)


def _keep(case: _Case, best: list[_Answer], j: int, answer: _Answer) -> None:
    """Keep the better answer: accepted first, then the shorter residual."""
    old = best[j]
    if answer.accepted or (not old.accepted and case.score(answer) < case.score(old)):
        best[j] = answer


def _one_stage(case: _Case, y: Floats, start: _Answer, stage: str) -> _Answer:
    """Run a stage that treats one signal at a time."""
    dictionary, n_nonzero = case.dictionary, case.n_nonzero
    most = dictionary.n_samples if n_nonzero is None else n_nonzero
    allowed = case.length_of_noise() or 0.0
    if stage == "fbp":
        stop = max(case.zero, allowed)
        coef, n_iter = forward_backward(dictionary, y, n_nonzero, residual=stop, net=3)
    elif stage == "bp":
        coef, n_iter = basis_pursuit(dictionary, y, radius=allowed)
        if n_nonzero is None:
            most = int((np.abs(coef) > SMALL * np.abs(coef).max()).sum())
    elif stage == "search":
        coef, n_iter = by_search(dictionary, y, most)
    else:
        point = np.zeros(dictionary.n_atoms)
        point[start.support] = start.coef
        coef, n_iter = by_solver(dictionary, y, most, SubspacePursuit(), point)
    return case.answer(y, largest(coef, most), stage, n_iter)


def _portfolio(case: _Case, signals: Floats) -> list[_Answer]:
    """Run one stage after the other until the residual is explained."""
    dictionary = case.dictionary
    best = [case.nothing() for _ in range(signals.shape[1])]
    # Where the theory of message passing holds, exchanges and convex stages add nothing to it.
    typical = dictionary.looks_independent and dictionary.n_samples >= TYPICAL
    if dictionary.looks_independent or dictionary.spectrum is None:
        _pass_messages(case, signals, best, amp, "amp", max_iter=150)
        if typical:
            _pass_messages(case, signals, best, amp, "amp signs", prior="signs", max_iter=200)
        if all(answer.accepted for answer in best):
            return best
    if dictionary.spectrum is None:
        _pass_messages(case, signals, best, amp, "amp damped", damping=0.3, max_iter=800)
        return best
    if not typical:
        _pass_messages(case, signals, best, vector_amp, "vamp")
        _one_by_one(case, signals, best, ["search"])
        _pass_messages(case, signals, best, vector_amp, "vamp signs", prior="signs")
    _pass_messages(case, signals, best, vector_amp, "vamp damped", damping=0.4, max_iter=300)
    _one_by_one(case, signals, best, ["fbp"] if typical else ["fbp", "sp", "bp"], typical)
    return best


def _one_by_one(
    case: _Case, signals: Floats, best: list[_Answer], stages: list[str], strict: bool = False
) -> None:
    """Run stages on the signals that have no accepted answer yet; they need a matrix."""
    if case.dictionary.matrix is None:
        return
    if case.n_nonzero is None:
        stages = [stage for stage in stages if stage not in {"sp", "search"}]
    for j in range(signals.shape[1]):
        for stage in stages:
            if best[j].accepted:
                break
            answer = _one_stage(case, signals[:, j], best[j], stage)
            # Where message passing is calibrated, its error is smaller even when all have failed.
            if answer.accepted or not strict:
                _keep(case, best, j, answer)


def _named(case: _Case, signals: Floats, solver: str) -> list[_Answer]:
    """Run one solver on every signal."""
    dictionary = case.dictionary
    if dictionary.matrix is None and solver not in BY_PRODUCTS:
        needs_spectrum = solver in {"vamp", "bp"}
        if not needs_spectrum or dictionary.spectrum is None:
            what = "orthogonal rows or " if needs_spectrum else ""
            shape = (dictionary.n_samples, dictionary.n_atoms)
            raise IncompatibleError(
                f"`solver={solver!r}` needs {what}the entries of the dictionary, got an operator "
                f"of shape {shape}, too large for a matrix.",
                'Pass `solver="amp"` or None, which use products only.',
            )
    if solver in {"amp", "vamp"}:
        best = [case.nothing() for _ in range(signals.shape[1])]
        _pass_messages(case, signals, best, vector_amp if solver == "vamp" else amp, solver)
        return best
    return [_solve_one(case, signal, solver) for signal in signals.T]


def _solve_one(case: _Case, y: Floats, solver: str) -> _Answer:
    dictionary, n_nonzero = case.dictionary, case.n_nonzero
    if solver == "fbp":
        stop = max(case.zero, case.length_of_noise() or 0.0)
        coef, n_iter = forward_backward(dictionary, y, n_nonzero, residual=stop)
        most = dictionary.n_samples if n_nonzero is None else n_nonzero
        return case.answer(y, largest(coef, most), solver, n_iter)
    if n_nonzero is None:
        n_nonzero = _guess(case, y)
    if solver == "bp":
        coef, n_iter = basis_pursuit(dictionary, y, radius=case.length_of_noise() or 0.0)
    elif solver == "search":
        coef, n_iter = by_search(dictionary, y, n_nonzero)
    else:
        # With atoms of length one and independent entries, steps of one suit `HTP`; the gradient
        # of the objective is divided by the samples.
        chosen: Any = {
            "htp": HTP(step_size=float(dictionary.n_samples)),
            "niht": NIHT(),
            "omp": OMP(),
            "cosamp": CoSaMP(),
            "sp": SubspacePursuit(),
        }[solver]
        coef, n_iter = by_solver(dictionary, y, n_nonzero, chosen)
    return case.answer(y, largest(coef, n_nonzero), solver, n_iter)


def _guess(case: _Case, y: Floats) -> int:
    """Return the number of nonzeros that message passing finds."""
    method = vector_amp if case.dictionary.spectrum is not None else amp
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        estimate = method(case.dictionary, y[:, None], None, noise=case.noise)
    return max(1, int(_choose(case, estimate, 0).size))


def _check_signals(y: Any, dictionary: Dictionary) -> tuple[Floats, NDArray[Any]]:
    """Return the signals as columns, and the array given."""
    array = to_array(y)
    check_numbers("y", array)
    if array.ndim not in {1, 2}:
        raise InvalidParameterError(f"`y` must have 1 or 2 axes, got shape {array.shape}.")
    if array.shape[0] != dictionary.n_samples:
        raise InvalidParameterError(
            "`dictionary` and `y` must have the same number of samples, "
            f"got {dictionary.n_samples} and {array.shape[0]}.",
            "Signals are columns of `y`, (n_samples, m).",
        )
    if array.ndim == 2 and array.shape[1] == 0:
        raise InvalidParameterError("`y` must hold at least one signal, got none.")
    signals = array.astype(np.float64).reshape(array.shape[0], -1)
    if not np.isfinite(signals).all():
        raise InvalidParameterError(
            "`y` must be finite, got NaN or infinity.", "Drop these samples first."
        )
    return signals, array


def recover(
    y: Any,
    dictionary: Any,
    n_nonzero: int | None = None,
    *,
    solver: str | None = None,
    noise: float | None = None,
    certify: bool = True,
) -> Result:
    r"""Recover sparse signals from linear measurements.

    .. math:: \min_x \tfrac{1}{2n} \|D x - y\|^2 \quad \text{subject to} \quad \|x\|_0 \le s

    Parameters
    ----------
    y : Tensor or array of shape (n_samples,) or (n_samples, m)
        One signal, or several as columns; each has a support of its own.
    dictionary : Tensor, array, sparse matrix or operator of shape (n_samples, n_atoms)
        Atoms are columns, of any length. An operator has ``shape``, ``matvec`` and ``rmatvec``, as
        those of scipy.
    n_nonzero : int or None, default=None
        Most nonzeros of a signal. None estimates the number: as many as the signal shows above
        the noise.
    solver : str or None, default=None
        One of "amp", "vamp", "fbp", "sp", "cosamp", "htp", "niht", "omp", "bp", "search". None
        tries several until one explains the signal.
    noise : float or None, default=None
        Standard deviation of the noise in a sample; 0 means none. None learns it.
    certify : bool, default=True
        Whether to compute the certificate and the conditions of uniqueness.

    Returns
    -------
    Result
        ``params["coef"]`` has shape (n_atoms,), or (m, n_atoms) for several signals, in the dtype
        and on the device of `y`. `measures` say which solver answered (``stage``), the relative
        residual, whether it is zero or explained by the noise (``explained``), and what is known
        of uniqueness; for up to 16 signals also the exact recovery coefficient (below 1 orthogonal
        matching pursuit and basis pursuit find any signal with that support) and the condition
        number of the support.

    Raises
    ------
    InvalidParameterError
        If shapes do not fit, a number is not finite, an atom is zero, or a parameter is out of
        range.
    IncompatibleError
        If the solver needs the entries of a large operator.

    See Also
    --------
    solve : Any objective and constraint.
    ellzero.sensing.maps : Cosines, wavelets, convolutions, rows of them and several together.

    Notes
    -----
    The default runs approximate message passing with a prior that it learns from the signal, fits
    least squares on the largest entries, and looks at the residual. While that is neither zero nor
    explained by the noise, it goes on: damped vector message passing, which takes dictionaries of
    any spectrum [1]_, then forward-backward pursuit; where the theory of message passing does not
    hold, exchanges of atoms come before, and subspace pursuit from the best answer and basis
    pursuit after. When nothing explains the signal the shortest residual is returned, among those
    of message passing where its theory holds; the measure ``explained`` is then false. Operators
    of more than 2**25 entries are used through their products only.

    All coefficients are least-squares coefficients on their support. A zero residual proves the
    global optimum of the problem above; it does not prove that no other signal does the same. That
    is what ``unique`` is about.

    References
    ----------
    .. [1] S. Rangan, P. Schniter and A. K. Fletcher, "Vector approximate message passing",
       arXiv:1610.03082.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.sensing import recover
    >>> generator = np.random.default_rng(0)
    >>> D = generator.standard_normal((50, 200))
    >>> y = 3 * D[:, 7] - 2 * D[:, 90]
    >>> result = recover(y, D, n_nonzero=2)
    >>> result.support, result.certificate.claim.name
    ({'coef': [7, 90]}, 'OPTIMAL')
    >>> result.measures["stage"], result.measures["explained"]
    ('amp', True)
    """
    began = time.perf_counter()
    if solver is not None:
        check_choice("solver", solver, SOLVERS)
    if noise is not None:
        check_real("noise", noise, 0.0)
    atoms = make_dictionary(dictionary)
    signals, given = _check_signals(y, atoms)
    if n_nonzero is not None:
        most = min(atoms.n_samples, atoms.n_atoms)
        n_nonzero = check_integer(
            "n_nonzero", n_nonzero, 0, most, meaning="the smaller side of `dictionary`"
        )
    largest_entry = np.abs(signals).max(0)
    safe = np.where(largest_entry > 0, largest_entry, 1.0)
    lengths = safe * np.sqrt(np.square(signals / safe).sum(0))
    answers = _answers(atoms, signals, lengths, n_nonzero, solver, noise, _zero(given, dictionary))
    coef = np.zeros((signals.shape[1], atoms.n_atoms))
    for j, answer in enumerate(answers):
        coef[j, answer.support] = answer.coef * lengths[j] / atoms.lengths[answer.support]
    residuals = np.array([a.residual for a in answers])
    value = float(np.square(residuals * lengths).sum() / (2 * atoms.n_samples))
    explained = [a.accepted for a in answers]
    stages = [a.stage for a in answers]
    worst = int(np.argmax(residuals))
    measures: dict[str, Measure] = {
        "stage": " | ".join(sorted(set(stages))),
        "explained": all(explained),
        "n_explained": int(sum(explained)),
        "relative_residual": float(residuals[worst]),
        "n_nonzero": int(max((a.support.size for a in answers), default=0)),
    }
    certificate = None
    if certify:
        certificate, found = prove(
            atoms,
            signals / np.where(lengths > 0, lengths, 1.0),
            [(a.support, a.coef) for a in answers],
            n_nonzero,
        )
        measures |= found
    like = y if isinstance(y, torch.Tensor) else None
    flat = given.ndim == 1
    return Result(
        params={"coef": _to_tensor(coef[0] if flat else coef, given, like)},
        value=value,
        status=Status.CONVERGED if all(explained) or noise is None else Status.STALLED,
        n_iter=max(a.n_iter for a in answers),
        certificate=certificate,
        trace=(float(np.square(lengths).sum() / (2 * atoms.n_samples)), value),
        seconds=time.perf_counter() - began,
        solver=f"recover(solver={solver!r}, noise={noise!r})",
        measures=measures,
    )


def _answers(
    atoms: Dictionary,
    signals: Floats,
    lengths: Floats,
    n_nonzero: int | None,
    solver: str | None,
    noise: float | None,
    zero: float,
) -> list[_Answer]:
    """Return an answer for each signal; those of length zero, and a budget of zero, need none."""
    none = np.zeros(0, np.int64)
    out = [
        _Answer(none, np.zeros(0), float(length > 0), "zero", 0, length == 0) for length in lengths
    ]
    live = np.flatnonzero(lengths > 0)
    if live.size == 0 or n_nonzero == 0:
        return out
    # The noise is relative to the signal: signals that differ in length are cases of their own.
    groups = [live] if not noise else [np.array([j]) for j in live]
    for group in groups:
        relative = noise if not noise else noise / lengths[group[0]]
        case = _Case(atoms, n_nonzero, zero, relative)
        unit = signals[:, group] / lengths[group]
        found = _portfolio(case, unit) if solver is None else _named(case, unit, solver)
        for j, answer in zip(group, found, strict=True):
            out[j] = answer
    return out


def _zero(y: NDArray[Any], dictionary: Any) -> float:
    """Return the residual that counts as zero at the precision of the data."""
    sizes = [8]
    for array in (y, dictionary):
        kind = getattr(array, "dtype", None)
        size = getattr(kind, "itemsize", None)
        floating = kind is not None and ("float" in str(kind))
        if floating and size in ZERO:
            sizes.append(size)
    return ZERO[min(sizes)]


def _to_tensor(coef: Floats, given: NDArray[Any], like: torch.Tensor | None) -> torch.Tensor:
    out = torch.from_numpy(np.ascontiguousarray(coef))
    if like is not None:
        kind = like.dtype if like.is_floating_point() else torch.float64
        return out.to(like.device, kind)
    return out.float() if given.dtype == np.float32 else out
