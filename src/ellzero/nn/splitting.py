"""Training with relaxed variable splitting, around any torch optimizer."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ellzero.core.problem import AbstractPenalty, AbstractSparseSet
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn.budgets import Budget, make_balls, prunable
from ellzero.nn.optimizer import check_optimizer, check_parameters
from ellzero.nn.state import plain_names, split, spread
from ellzero.sets import ProductSet
from ellzero.tensors import named, thresholded
from ellzero.tensors.coverage import covered
from ellzero.typing import Params
from ellzero.validation import check_choice, check_integer, check_real

log = logging.getLogger("ellzero")

ORDERS = ("gauss-seidel", "jacobi")


class RVSM(torch.optim.Optimizer):
    r"""Any torch optimizer on dense weights that a thresholded copy attracts.

    The relaxed variable splitting method: with the loss f, a penalty r and a copy u of the counted
    weights w, each step thresholds and descends on :math:`f(w) + r(u) + (\beta/2) |w - u|^2`,

    .. math:: u \leftarrow \mathrm{prox}_{r / \beta}(w), \quad
        w \leftarrow w - \mathrm{optimizer}(\nabla f(w) + \beta (w - u))

    The model holds the dense w during training; `finalize` puts the sparse u in their place.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Built on the parameters of `model`. Its `param_groups` and `state` are shared. With SGD
        this is the method of the paper; others precondition the attraction as they do the loss.
    model : torch.nn.Module
        The network.
    penalty : AbstractPenalty or None, default=None
        Such as `L0`, `L1`, `TransformedL1` or a group version, whose weight is the lambda. One
        that names no tensors is put on all weights of two axes or more.
    n_nonzero : int, float or mapping of str to int or float, default=None
        An exact budget instead of a penalty, as in `HardThresholding`: u holds the largest entries
        of w.
    constraint : AbstractSparseSet or None, default=None
        Any sparse set instead of both.
    allocation : {"global", "uniform", "erk"}, default="global"
        How `n_nonzero` is shared by tensors; see `make_balls`.
    beta : float, default=0.01
        The coupling. Must be positive. Large beta pulls w to u soon, small beta lets w fit first.
    order : {"gauss-seidel", "jacobi"}, default="gauss-seidel"
        Whether the step sees u of the present w, or of the one before, as in [2]_.
    every : int, default=1
        Steps between thresholdings; u stays in between.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range, a name unknown, or not exactly one of `penalty`,
        `n_nonzero` and `constraint` is given.
    IncompatibleError
        If the optimizer needs closures or does not hold a counted parameter.

    Warns
    -----
    UserWarning
        If the learning rate times `beta` is 2 or more, so that the attraction alone diverges with
        SGD, or if the penalty sets every counted weight to zero at the start.

    See Also
    --------
    HardThresholding : The model itself is sparse after every step.
    ellzero.solvers.RVSM : The same on objectives, with certificates.

    Notes
    -----
    Memory: one copy of the counted tensors. A step costs one prox or projection, in float64, and
    two passes over the counted weights beside that of the optimizer. In expectation over batches
    and for plain SGD with ``lr < 2 / (beta + L)`` the Lagrangian descends; with momentum,
    preconditioning or noise nothing is proven. The gap between w and u does not close: judge the
    network by u, under `sparse_weights`. A step with a gradient that is not finite is skipped,
    counted in `n_skipped` and logged. Budgets and group penalties may also be given by name.

    References
    ----------
    .. [1] T. Dinh and J. Xin, "Convergence of a relaxed variable splitting method for learning
       sparse neural networks via l1, l0, and transformed-l1 penalties", arXiv:1812.05719.
    .. [2] T. Dinh et al., "Sparsity meets robustness: channel pruning for the Feynman-Kac
       formalism principled robust deep neural nets", arXiv:2003.00631.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.nn import RVSM
    >>> model = torch.nn.Linear(10, 10)
    >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> optimizer = RVSM(base, model, n_nonzero=7, beta=0.5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(1, 10)).square().sum().backward()
    ...     optimizer.step()
    >>> int((model.weight != 0).sum()), optimizer.n_nonzero
    (100, 7)
    >>> optimizer.finalize()
    >>> int((model.weight != 0).sum())
    7
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        penalty: AbstractPenalty | None = None,
        *,
        n_nonzero: Budget | None = None,
        constraint: AbstractSparseSet | None = None,
        allocation: str = "global",
        beta: float = 0.01,
        order: str = "gauss-seidel",
        every: int = 1,
    ) -> None:
        check_choice("order", order, ORDERS)
        check_integer("every", every, 1)
        self.beta = check_real(
            "beta", beta, 0.0, open_low=True, hint="It couples the dense and the sparse weights."
        )
        check_optimizer(optimizer)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise IncompatibleError(
                "`optimizer` must take one step for one gradient, got `LBFGS`.",
                "Use a first-order optimizer, such as `torch.optim.SGD`.",
            )
        given = {"penalty": penalty, "n_nonzero": n_nonzero, "constraint": constraint}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            listed = " and ".join(f"`{name}`" for name in names) or "none"
            raise InvalidParameterError(
                "Exactly one of `penalty`, `n_nonzero` and `constraint` must be given, got "
                f"{listed}."
            )
        if penalty is not None and not isinstance(penalty, AbstractPenalty):
            raise InvalidParameterError(
                f"`penalty` must be a penalty object, got {penalty!r}.",
                "Pass `ellzero.L0(1e-6)`, for example; its weight is the lambda.",
            )
        params = dict(model.named_parameters())
        wanted = tuple(prunable(model))
        self.penalty = penalty
        self.sets: tuple[AbstractSparseSet, ...] = ()
        if penalty is not None:
            if getattr(penalty, "names", wanted) is None:
                self.penalty = replace(penalty, names=wanted)  # type: ignore[type-var]
            counted = covered(params, getattr(self.penalty, "names", wanted))
        elif constraint is not None:
            if constraint.names is None:
                constraint = replace(constraint, names=wanted)  # type: ignore[type-var]
            self.sets = constraint.sets if isinstance(constraint, ProductSet) else (constraint,)
        else:
            assert n_nonzero is not None
            self.sets = make_balls(model, n_nonzero, allocation=allocation)
        if self.sets:
            shown = {n: p.detach() for n, p in params.items()}
            for one in self.sets:
                one.check_params(shown)
            counted = covered(params, tuple(n for s in self.sets for n in s.names or ()))
        check_parameters(optimizer, params, counted)
        self.optimizer = optimizer
        self.order, self.every = order, every
        self.n_steps = self.n_skipped = 0
        self.is_finalized = False
        # The base class wants its own groups; afterwards both share the same objects.
        super().__init__([{"params": [params[counted[0]]]}], optimizer.defaults)
        self._share()
        self._params = {n: params[n] for n in counted}
        self._sparse: dict[str, Tensor] = {}
        with torch.no_grad():
            self._sparse = self._thresholded()
        self._warn()

    def _share(self) -> None:
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state

    def _warn(self) -> None:
        rate = max(float(group.get("lr", 0.0)) for group in self.param_groups)
        if isinstance(self.optimizer, torch.optim.SGD) and rate * self.beta >= 2:
            warnings.warn(
                f"`lr` {rate:g} times `beta` {self.beta:g} is not below 2: the attraction to the "
                "sparse weights alone diverges. Lower one of them.",
                UserWarning,
                stacklevel=3,
            )
        if self.penalty is not None and self.n_nonzero == 0:
            known = getattr(self.penalty, "threshold", None)
            level = f"The threshold {known(1.0 / self.beta):.3g}" if known else "The penalty"
            warnings.warn(
                f"{level} sets all {self.n_entries} counted weights to zero at the start. Lower "
                "the weight of the penalty, or raise `beta`.",
                UserWarning,
                stacklevel=3,
            )

    # The sparse copy ---------------------------------------------------------------------------

    def _dense(self) -> Params:
        return {n: p.detach() for n, p in self._params.items()}

    def _thresholded(self) -> dict[str, Tensor]:
        """Return the sparse copy of the present dense weights."""
        out = self._dense()
        if self.penalty is not None:
            return dict(self.penalty.prox(out, 1.0 / self.beta))
        masks = named.nonzero_masks(self._sparse) if self._sparse else None
        for one in self.sets:
            out = one.project(out, incumbents=masks)
        return dict(out)

    @property
    def sparse(self) -> dict[str, Tensor]:
        """The sparse weights u of the present dense ones, by name."""
        return self._dense() if self.is_finalized else self._thresholded()  # type: ignore[return-value]

    @property
    def n_entries(self) -> int:
        """Weights that the penalty or the budget counts."""
        return sum(p.numel() for p in self._params.values())

    @property
    def n_nonzero(self) -> int:
        """Nonzeros of the sparse weights, counted now."""
        return named.to_int(named.count_nonzero(self.sparse))

    @property
    def gap(self) -> float:
        """Distance between dense and sparse weights over the length of the dense ones, now."""
        dense = self._dense()
        apart = named.to_float(named.norm(named.sub(dense, self.sparse)))
        return apart / max(named.to_float(named.norm(dense)), 1e-300)

    def lagrangian(self, loss: Tensor | float) -> float:
        """Return loss plus penalty plus attraction at the present weights.

        Parameters
        ----------
        loss : Tensor or float
            The loss at the dense weights.

        Returns
        -------
        float
            The Lagrangian.
        """
        dense, sparse = self._dense(), self.sparse
        value = named.to_float(loss.detach() if isinstance(loss, Tensor) else loss)
        value += self.beta / 2 * named.to_float(named.norm_squared(named.sub(dense, sparse)))
        if self.penalty is not None:
            value += named.to_float(self.penalty.value(sparse))
        return value

    @contextlib.contextmanager
    def sparse_weights(self) -> Iterator[None]:
        """Put the sparse weights into the model within a ``with`` block, as for validation."""
        sparse = self.sparse
        saved = {n: p.detach().clone() for n, p in self._params.items()}
        self._write(sparse)
        try:
            yield
        finally:
            self._write(saved)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, param in self._params.items():
            param.copy_(values[name])

    # The step ----------------------------------------------------------------------------------

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Threshold, and take one step of the optimizer on loss plus attraction.

        Parameters
        ----------
        closure : callable or None, default=None
            Computes the loss and the gradients; called once, at the dense weights.

        Returns
        -------
        Any
            What `closure` returned, or None.

        Raises
        ------
        IncompatibleError
            If a counted parameter was frozen, or after `finalize`.
        """
        if self.is_finalized:
            raise IncompatibleError(
                "`step` cannot follow `finalize`: the model holds the sparse weights.",
                "Call `nn.freeze_support(model)` and train on with a plain optimizer.",
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, param in self._params.items():
            if not param.requires_grad:
                raise IncompatibleError(
                    f"{name!r} was frozen (`requires_grad` is False) after construction.",
                    "Set its learning rate to 0 instead, or build the optimizer anew.",
                )
        if not thresholded.all_finite(
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ):
            self.n_skipped += 1
            log.warning("Step %d skipped: a gradient is not finite.", self.n_steps + 1)
            return loss
        due = self.n_steps % self.every == 0
        fresh = self._thresholded() if due else self._sparse
        seen = fresh if self.order == "gauss-seidel" else self._sparse
        for name, param in self._params.items():
            pull = self.beta * (param - seen[name])
            if param.grad is None:
                param.grad = pull
            else:
                param.grad.add_(pull)
        self._sparse = fresh
        self.optimizer.step()
        self.n_steps += 1
        return loss

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @torch.no_grad()
    def finalize(self) -> None:
        """Put the sparse weights into the model; the dense ones are dropped.

        The model then holds exact zeros. A second call changes nothing.
        """
        if not self.is_finalized:
            self._write(self._thresholded())
            self._sparse = {}
            self.is_finalized = True

    # State -------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint must have been saved with to be loaded, as plain values."""
        rule = self.sets if self.penalty is None else self.penalty
        return {
            "method": "RVSM",
            "rule": plain_names(repr(rule)),
            "beta": self.beta,
            "order": self.order,
            "every": self.every,
        }

    def _numbers(self) -> dict[str, int]:
        """Return the place in the optimizer of every counted parameter."""
        held = [p for group in self.param_groups for p in group["params"]]
        places = {id(p): i for i, p in enumerate(held)}
        return {n: places[id(p)] for n, p in self._params.items()}

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer with the sparse weights and the counters.

        Returns
        -------
        dict
            Everything that a run needs to go on bit for bit, besides the model's own state, which
            holds the dense weights.
        """
        ours: dict[str, Any] = {
            "settings": self.settings,
            "n_steps": self.n_steps,
            "n_skipped": self.n_skipped,
            "is_finalized": self.is_finalized,
        }
        if self._sparse:
            ours["sparse"] = dict(self._sparse)
        return spread(self.optimizer.state_dict(), ours, self._numbers())

    @override
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; nothing is changed when it does not fit.

        Parameters
        ----------
        state_dict : dict
            State of an `RVSM` with the same penalty or budget, `beta`, `order` and `every`.

        Raises
        ------
        InvalidParameterError
            If the state is of another optimizer, setting or network.
        """
        plain, ours = split(state_dict, self._numbers())
        if ours is None or ours.get("settings", {}).get("method") != "RVSM":
            raise InvalidParameterError(
                "`state_dict` must come from an `RVSM`, got one of another optimizer.",
                "Resume with the optimizer state that was saved by the run.",
            )
        for key, value in self.settings.items():
            if ours["settings"].get(key) != value:
                raise InvalidParameterError(
                    f"`state_dict` was saved with {key} {ours['settings'].get(key)}, "
                    f"this optimizer has {value}.",
                    "Build the optimizer with the settings of the checkpoint.",
                )
        sparse = ours.get("sparse", {})
        for name, param in self._params.items():
            given = sparse.get(name)
            if not ours["is_finalized"] and (given is None or given.shape != param.shape):
                raise InvalidParameterError(
                    f"`state_dict` does not fit the network: tensor {name!r} of shape "
                    f"{tuple(param.shape)} is missing, or of another shape."
                )
        self.optimizer.load_state_dict(plain)
        self._share()
        self.n_steps, self.n_skipped = ours["n_steps"], ours["n_skipped"]
        self.is_finalized = ours["is_finalized"]
        self._sparse = {
            n: sparse[n].to(p.detach(), copy=True) for n, p in self._params.items() if n in sparse
        }

    @override
    def __getstate__(self) -> dict[str, Any]:
        left = ("step", "zero_grad")  # wrapped by learning-rate schedulers, which wrap anew
        return {k: v for k, v in self.__dict__.items() if k not in left and "_hooks" not in k}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "optimizer" in state:  # the base class loads groups by this method too
            self._share()

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse parameters after construction, once the counted ones are fixed."""
        if hasattr(self, "_params"):
            raise IncompatibleError(
                "A parameter cannot be added after construction.",
                "Build the optimizer and `RVSM` again with all parameters.",
            )
        super().add_param_group(param_group)
