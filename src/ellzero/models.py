"""Saved models: one safetensors file with the parameters, the settings and the claims."""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ellzero._version import __version__
from ellzero.core.result import Certificate, Claim, Proof, TreeProof
from ellzero.errors import (
    IncompatibleError,
    InvalidParameterError,
    ModelFileError,
    NonFiniteError,
)
from ellzero.storage import from_json, read_model_file, to_json, write_atomic
from ellzero.tensors import named
from ellzero.typing import Params
from ellzero.validation import check_choice

FORMAT = "ellzero-model"
SCHEMA_VERSION = 1
KINDS = (
    "linear-softmax", "logistic", "least-squares", "huber", "poisson", "module-mlp", "gated-relu",
)  # fmt: skip
NETWORKS = ("module-mlp", "gated-relu")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TASKS = ("classification", "regression")
ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu", "softplus", "identity")

_AGAIN = "Copy the file again, or train the model again."
_FIELDS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "architecture": (dict,),
    "task": (str,),
    "feature_names": (list,),
    "class_names": (list, type(None)),
    "target_name": (str, type(None)),
    "settings": (dict,),
    "data": (dict,),
    "claims": (dict,),
    "ellzero_version": (str,),
    "params": (list,),
    "tensors": (list,),
    "n_nonzero": (int,),
    "checksum": (str,),
}


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A trained model, with what is needed to use it and to check its claims again.

    Parameters
    ----------
    kind : {"linear-softmax", "logistic", "least-squares", "huber", "poisson", "module-mlp", \
"gated-relu"}
        How the parameters are applied; of "poisson" the prediction is the exponential.
    params : mapping of str to Tensor
        The parameters, in order. Linear kinds have ``coef`` and perhaps ``intercept``; a network
        has the weight and bias of each layer, named as ``torch.nn.Sequential`` names them; one
        with fixed gates has ``gates``, ``weights`` and ``intercept``.
    task : {"classification", "regression"}
        What is predicted.
    feature_names : tuple of str
        Name of every column of the features.
    class_names : tuple of str or None, default=None
        Name of every class; None for regression.
    target_name : str or None, default=None
        Name of the target.
    architecture : dict, default={}
        ``hidden`` (sizes of the hidden layers) and ``activation``, for networks; ``biased`` for
        those with fixed gates.
    settings : dict, default={}
        What rebuilds the problem: ridge, budget, names, seed, test size, loss.
    data : dict, default={}
        Name, fingerprint and number of samples of the data.
    claims : dict, default={}
        What was proven, as `Certificate.to_dict` has it, and the value.
    mean, scale : Tensor of shape (n_features,) or None, default=None
        Standardization of the features; None means that they are used as they are.
    proof : Proof, TreeProof or None, default=None
        Evidence of global optimality.
    ellzero_version : str, default=the version in use
        Version that trained the model.
    """

    kind: str
    params: Params
    task: str
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    target_name: str | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    claims: Mapping[str, Any] = field(default_factory=dict)
    mean: Tensor | None = None
    scale: Tensor | None = None
    proof: Proof | TreeProof | None = None
    ellzero_version: str = __version__

    @property
    def n_nonzero(self) -> int:
        """Number of parameters that differ from zero."""
        return named.to_int(named.count_nonzero(self.params))


def save_model(path: str | os.PathLike[str], model: SavedModel) -> None:
    """Write a model as one file; an existing file is replaced in one move.

    Parameters
    ----------
    path : str or path
        Where; the usual extension is ``.safetensors``.
    model : SavedModel
        What.

    Raises
    ------
    InvalidParameterError
        If a field has a wrong value, or the file cannot be written.
    NonFiniteError
        If a parameter is NaN or infinite.

    Notes
    -----
    The file holds data only, nothing that runs when it is read. It is read back in memory before
    it is written: tensors, their dtypes and the number of nonzeros are as given.

    Examples
    --------
    >>> import pathlib, tempfile, torch
    >>> from ellzero.models import SavedModel, load_model, save_model
    >>> coef = {"coef": torch.tensor([0.0, 2.0])}
    >>> model = SavedModel("least-squares", coef, "regression", ("a", "b"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(pathlib.Path(folder, "m.safetensors"), model)
    ...     load_model(pathlib.Path(folder, "m.safetensors")).params["coef"].tolist()
    [0.0, 2.0]
    """
    blob = _pack(model)
    stored = _unpack(str(path), blob)
    same = list(stored.params) == list(model.params) and all(
        torch.equal(stored.params[n], t.detach().cpu()) and stored.params[n].dtype == t.dtype
        for n, t in model.params.items()
    )
    if not same or stored.n_nonzero != model.n_nonzero:
        raise ModelFileError(
            f"The parameters for '{path}' changed when they were stored.",
            "Save them in float32 or float64.",
        )
    write_atomic(path, blob)


def load_model(path: str | os.PathLike[str]) -> SavedModel:
    """Read a model written by `save_model`, after checking it.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    SavedModel
        The model, on the CPU.

    Raises
    ------
    ModelFileError
        If the file is missing, cut short, damaged, of another kind or of another version.
    """
    blob = read_model_file(path)
    return _unpack(str(path), blob)


def predict(model: SavedModel, X: Tensor) -> Tensor:
    """Return the classes or values that a model predicts.

    Parameters
    ----------
    model : SavedModel
        The model.
    X : Tensor of shape (n_samples, n_features)
        Features as the table has them, before standardization.

    Returns
    -------
    Tensor of shape (n_samples,)
        Codes (int64) of `class_names`, or values.

    Raises
    ------
    InvalidParameterError
        If `X` has another number of columns than the model has features.
    IncompatibleError
        If the parameters do not form the layers that `kind` says.
    """
    out = scores(model, X)
    if model.task == "regression":
        out = out.squeeze(-1)
        return out.exp() if model.kind == "poisson" else out
    if out.shape[1] == 1:
        return (out.squeeze(-1) > 0).to(torch.int64)
    return out.argmax(dim=1)


def predict_proba(model: SavedModel, X: Tensor) -> Tensor:
    """Return the probability of every class.

    Parameters
    ----------
    model : SavedModel
        A model of classes.
    X : Tensor of shape (n_samples, n_features)
        Features as the table has them, before standardization.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Probabilities, in the order of `class_names`; rows add up to 1.

    Raises
    ------
    InvalidParameterError
        If `X` has another number of columns than the model has features.
    IncompatibleError
        If the model has no classes.

    Examples
    --------
    >>> import torch
    >>> from ellzero.models import SavedModel, predict_proba
    >>> coef = {"coef": torch.tensor([0.0, 2.0])}
    >>> model = SavedModel("logistic", coef, "classification", ("a", "b"), ("no", "yes"))
    >>> predict_proba(model, torch.tensor([[5.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """
    if model.task != "classification":
        raise IncompatibleError(
            f"Probabilities are of models of classes, got a model of kind '{model.kind}'.",
            "Ask for its predictions.",
        )
    out = scores(model, X)
    if out.shape[1] == 1:
        out = torch.cat([-out, out], dim=1) / 2
    elif model.kind == "gated-relu":
        # Trained one class against the rest.
        shares = torch.sigmoid(out)
        return shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-300)
    return torch.softmax(out, dim=1)


def scores(model: SavedModel, X: Tensor) -> Tensor:
    """Return the linear predictor, or what the last layer gives, shape (n_samples, n_outputs).

    Raises
    ------
    InvalidParameterError
        If `X` has another number of columns than the model has features.
    """
    n_features = len(model.feature_names)
    if X.ndim != 2 or X.shape[1] != n_features:
        raise InvalidParameterError(
            f"`X` must have shape (n_samples, {n_features}), got {tuple(X.shape)}.",
            "Give the features that the model was trained on, in the same order.",
        )
    dtype = next(iter(model.params.values())).dtype
    device = X.device
    if model.mean is not None and model.scale is not None:
        # In the precision of the scaler, as in training, before the cast to that of the model.
        X = (X.to(model.mean.dtype) - model.mean.to(device)) / model.scale.to(device)
    out = X.to(dtype)
    if model.kind == "gated-relu":
        return _gated_scores(model, out)
    layers = _layers(model)
    for i, (weight, bias) in enumerate(layers):
        out = out @ weight.to(device).T
        if bias is not None:
            out = out + bias.to(device)
        if i + 1 < len(layers):
            out = _activation(model.architecture.get("activation", "relu"))(out)
    return out


@dataclass(frozen=True, slots=True)
class Recheck:
    """Claims of a file beside what was recomputed.

    Parameters
    ----------
    certificate : Certificate
        What is proven now.
    rows : tuple of (str, str, str, bool)
        Claim by claim: name, what the file says, what was found, whether it holds.

    Examples
    --------
    >>> from ellzero.core.result import Certificate, Claim
    >>> from ellzero.models import Recheck
    >>> Recheck(Certificate(Claim.FEASIBLE, ()), (("value", "1", "2", False),)).holds
    False
    """

    certificate: Certificate
    rows: tuple[tuple[str, str, str, bool], ...]

    @property
    def holds(self) -> bool:
        """Whether every claim of the file holds."""
        return all(row[3] for row in self.rows)


def claim_rows(
    stored: Mapping[str, Any], certificate: Certificate
) -> list[tuple[str, str, str, bool]]:
    """Return the claims of a file beside what was recomputed.

    Parameters
    ----------
    stored : mapping
        What `Certificate.to_dict` gave when the model was saved.
    certificate : Certificate
        What is proven now.

    Returns
    -------
    list of (str, str, str, bool)
        Name, what the file says, what was found, whether it holds: the claim, the lower bound
        where there is one, and every check that had passed.
    """
    said, now = stored.get("claim"), certificate.claim
    level = None if said is None else Claim[str(said).upper()]
    rows = [
        (
            "claim",
            str(said),
            "none" if now is None else now.name.lower(),
            level is None or certificate.supports(level),
        )
    ]
    old = stored.get("lower_bound")
    if old is not None:
        new = certificate.lower_bound
        slack = 1e-9 * abs(old) + 1e-12
        rows.append(
            (
                "proven lower bound",
                f"{old:.10g}",
                "none" if new is None else f"{new:.10g}",
                new is not None and new >= old - slack,
            )
        )
    found = {check.name: check for check in certificate.checks}
    for check in stored.get("checks", ()):
        if not check["passed"]:
            continue
        again = found.get(check["name"])
        rows.append(
            (
                check["name"],
                f"{check['value']:.3g} <= {check['bound']:.3g}",
                "not recomputed" if again is None else f"{again.value:.3g} <= {again.bound:.3g}",
                again is not None and again.passed,
            )
        )
    return rows


def _layers(model: SavedModel) -> list[tuple[Tensor, Tensor | None]]:
    """Return the weight (n_outputs, n_inputs) and the bias of every layer."""
    width = len(model.feature_names)
    layers: list[tuple[Tensor, Tensor | None]] = []
    if model.kind != "module-mlp":
        coef, intercept = model.params["coef"], model.params.get("intercept")
        if coef.numel() == 0:
            raise _misfit(model)
        coef = coef.reshape(-1, coef.shape[-1]) if coef.ndim else coef.reshape(1, 1)
        layers.append((coef, None if intercept is None else intercept.reshape(-1)))
    else:
        for name, tensor in model.params.items():
            if name.endswith("weight") and tensor.ndim == 2:
                bias = model.params.get(name.removesuffix("weight") + "bias")
                layers.append((tensor, bias))
    ends = None if model.class_names is None else len(model.class_names)
    for weight, bias in layers:
        if weight.shape[1] != width or (bias is not None and bias.shape != weight.shape[:1]):
            raise _misfit(model)
        width = weight.shape[0]
    two = ends == 2 and width == 1
    if not layers or (model.task == "classification" and ends is not None and ends != width):
        if not (layers and two):
            raise _misfit(model)
    elif model.task == "regression" and width != 1:
        raise _misfit(model)
    return layers


def _gated_scores(model: SavedModel, X: Tensor) -> Tensor:
    """Return sum_i 1(h_i'x > 0) U_i'x + c, shape (n_samples, n_outputs)."""
    gates, weights = model.params.get("gates"), model.params.get("weights")
    shift = model.params.get("intercept")
    if model.architecture.get("biased"):
        X = torch.cat([X, torch.ones_like(X[:, :1])], dim=1)
    ends = len(model.class_names or (model.target_name,))
    ends = 1 if ends == 2 else ends
    if (
        gates is None
        or weights is None
        or shift is None
        or gates.shape[1:] != X.shape[1:]
        or weights.shape != (*gates.shape, ends)
        or shift.shape != (ends,)
    ):
        raise _misfit(model)
    out = shift.to(X.device).expand(X.shape[0], ends)
    for gate, weight in zip(gates.to(X.device), weights.to(X.device), strict=True):
        out = out + (X @ gate > 0).to(X.dtype).unsqueeze(1) * (X @ weight)
    return out


def _misfit(model: SavedModel) -> IncompatibleError:
    shapes = ", ".join(f"'{n}' {tuple(t.shape)}" for n, t in model.params.items())
    return IncompatibleError(
        f"The parameters do not form a model of kind '{model.kind}' with "
        f"{len(model.feature_names)} features: {shapes}.",
        "Check the kind, the feature names and the class names of the model.",
    )


def _activation(name: str) -> Any:
    check_choice("activation", name, ACTIVATIONS)
    if name == "identity":
        return lambda t: t
    return (
        getattr(torch.nn.functional, name)
        if name in ("gelu", "softplus")
        else getattr(torch, name)
    )


def _check_model(model: SavedModel) -> None:
    check_choice("kind", model.kind, KINDS)
    check_choice("task", model.task, TASKS)
    if not model.params:
        raise InvalidParameterError("`params` must hold at least one tensor, got none.")
    if model.kind not in NETWORKS and "coef" not in model.params:
        raise InvalidParameterError(
            f"`params` must hold 'coef' for the kind '{model.kind}', "
            f"got {', '.join(map(repr, model.params))}.",
            "Name the coefficients 'coef' and the intercept 'intercept'.",
        )
    for name, tensor in model.params.items():
        if tensor.dtype not in FLOATS:
            raise InvalidParameterError(
                f"The parameter '{name}' must be of floating-point numbers, got {tensor.dtype}.",
                "Save it in float32 or float64.",
            )
        if not named.all_true(torch.isfinite(tensor)):
            raise NonFiniteError(
                f"The parameter '{name}' is NaN or infinite, so the model is not saved.",
                "Train it again with a smaller step or scaled data.",
            )
    if (model.mean is None) != (model.scale is None):
        raise InvalidParameterError("`mean` and `scale` must be given together, got one of them.")


def _check_use(model: SavedModel) -> None:
    """Raise where a model from a file could not be applied, or its claims not be compared."""
    check_choice("activation", model.architecture.get("activation", "relu"), ACTIVATIONS)
    for name, tensor in (("mean", model.mean), ("scale", model.scale)):
        if tensor is not None and (
            tensor.shape not in ((), (len(model.feature_names),))
            or not tensor.dtype.is_floating_point
        ):
            raise InvalidParameterError(
                f"`{name}` must hold a number for each of {len(model.feature_names)} features, "
                f"got {tuple(tensor.shape)} of {tensor.dtype}.",
            )
    check_claims(model.claims)


def check_claims(claims: Mapping[str, Any]) -> None:
    """Raise InvalidParameterError unless `claim_rows` can read what a file claims."""

    def number(value: Any) -> bool:
        return type(value) is float or (type(value) is int and abs(value) < 2**63)

    claim, checks = claims.get("claim"), claims.get("checks", ())
    known = claim is None or (isinstance(claim, str) and claim.upper() in Claim.__members__)
    numbers = [v for n in ("lower_bound", "value") if (v := claims.get(n)) is not None]
    plain = isinstance(checks, list | tuple) and all(isinstance(c, dict) for c in checks)
    if plain:
        for check in checks:
            numbers += [check.get("value"), check.get("bound")]
            plain &= isinstance(check.get("name"), str) and isinstance(check.get("passed"), bool)
    if not (known and plain and all(map(number, numbers))):
        raise InvalidParameterError("its claims are not those of a certificate.")


def _pack(model: SavedModel) -> bytes:
    from safetensors.torch import save as pack

    _check_model(model)
    tensors = {f"params/{n}": t for n, t in model.params.items()}
    if model.mean is not None and model.scale is not None:
        tensors |= {"scaler/mean": model.mean, "scaler/scale": model.scale}
    if model.proof is not None:
        tensors |= proof_tensors(model.proof)
    # Clones: safetensors refuses tensors that share memory, and expanded ones.
    stored = {
        n: t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for n, t in tensors.items()
    }
    metadata = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "ellzero_version": model.ellzero_version,
        "kind": model.kind,
        "architecture": dict(model.architecture),
        "task": model.task,
        "feature_names": list(model.feature_names),
        "class_names": None if model.class_names is None else list(model.class_names),
        "target_name": model.target_name,
        "settings": dict(model.settings),
        "data": dict(model.data),
        "claims": dict(model.claims),
        "params": list(model.params),
        "tensors": sorted(stored),
        "n_nonzero": model.n_nonzero,
    }
    first = pack(stored)
    length = struct.unpack("<Q", first[:8])[0]
    metadata["checksum"] = _checksum(
        metadata, from_json(first[8 : 8 + length]), first[8 + length :]
    )
    return pack(stored, {"ellzero": to_json(metadata, "model")})


def _checksum(metadata: Mapping[str, Any], header: Mapping[str, Any], data: bytes) -> str:
    """Return the hash of the metadata (without its checksum) and of every tensor."""
    rest = {k: v for k, v in metadata.items() if k != "checksum"}
    digest = hashlib.sha256(to_json(rest, "model").encode())
    for name in sorted(n for n in header if n != "__metadata__"):
        entry = header[name]
        begin, end = entry["data_offsets"]
        digest.update(to_json([name, entry["dtype"], entry["shape"], end - begin]).encode())
        digest.update(data[begin:end])
    return digest.hexdigest()


def proof_tensors(proof: Proof | TreeProof) -> dict[str, Tensor]:
    """Return a proof as tensors, for storage."""
    if isinstance(proof, TreeProof):
        parts = {f.name: getattr(proof, f.name) for f in fields(proof)}
        return {f"proof/tree/{name}": torch.from_numpy(part) for name, part in parts.items()}
    out: dict[str, Tensor] = {}
    for name, boxes in (("included", proof.included), ("excluded", proof.excluded)):
        counts = torch.tensor([0, *(len(box) for box in boxes)], dtype=torch.int64)
        out[f"proof/{name}_starts"] = counts.cumsum(0)
        out[f"proof/{name}"] = torch.tensor([i for box in boxes for i in box], dtype=torch.int64)
    points = torch.as_tensor(proof.points, dtype=torch.float64)
    out["proof/points"] = points.reshape(len(proof), -1) if len(proof) else points.reshape(0, 0)
    return out


def read_proof(path: str, tensors: Mapping[str, Tensor]) -> Proof | TreeProof | None:
    """Return the proof that `proof_tensors` made, or None; `path` is for the message."""
    if "proof/tree/steps" in tensors:
        return _read_tree(path, tensors)
    if "proof/points" not in tensors:
        return None

    def boxes(name: str) -> tuple[tuple[int, ...], ...]:
        starts = [int(i) for i in named.to_list(tensors[f"proof/{name}_starts"])]
        flat = [int(i) for i in named.to_list(tensors[f"proof/{name}"])]
        if starts[0] != 0 or starts[-1] != len(flat) or starts != sorted(starts):
            raise ValueError("starts")
        return tuple(tuple(flat[a:b]) for a, b in itertools.pairwise(starts))

    try:
        included, excluded = boxes("included"), boxes("excluded")
        points = named.to_list(tensors["proof/points"].to(torch.float64))
        if not len(included) == len(excluded) == len(points):
            raise ValueError("boxes")
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ModelFileError(
            f"'{path}' is damaged: its proof of optimality cannot be read.", _AGAIN
        ) from error
    return Proof(included, excluded, points)


def _read_tree(path: str, tensors: Mapping[str, Tensor]) -> TreeProof:
    kinds = {
        "steps": torch.int32, "places": torch.int32, "decisions": torch.int32,
        "projected": torch.int8, "values": torch.float64, "thresholds": torch.float64,
        "weights": torch.float64,
    }  # fmt: skip
    parts = {}
    for field_ in fields(TreeProof):
        part = tensors.get(f"proof/tree/{field_.name}")
        axes = 2 if field_.name == "steps" else 1
        if part is None or part.ndim != axes or part.dtype != kinds.get(
            field_.name, torch.int64
        ):  # fmt: skip
            raise ModelFileError(
                f"'{path}' is damaged: its proof of optimality cannot be read.", _AGAIN
            )
        parts[field_.name] = part.numpy()
    return TreeProof(**parts)


def _unpack(path: str, blob: bytes) -> SavedModel:
    header, data = _read_header(path, blob)
    metadata = _read_metadata(path, header)
    names = set(header) - {"__metadata__"}
    for name in [*metadata["tensors"], *(f"params/{n}" for n in metadata["params"])]:
        if name not in names:
            raise ModelFileError(f"'{path}' is damaged: the tensor '{name}' is missing.", _AGAIN)
    if _checksum(metadata, header, data) != metadata["checksum"]:
        raise ModelFileError(
            f"'{path}' is damaged: its content does not match its checksum.", _AGAIN
        )
    tensors = _read_tensors(path, blob)
    params = {n: tensors[f"params/{n}"] for n in metadata["params"]}
    classes = metadata["class_names"]
    model = SavedModel(
        kind=metadata["kind"],
        params=params,
        task=metadata["task"],
        feature_names=tuple(map(str, metadata["feature_names"])),
        class_names=None if classes is None else tuple(map(str, classes)),
        target_name=metadata["target_name"],
        architecture=metadata["architecture"],
        settings=metadata["settings"],
        data=metadata["data"],
        claims=metadata["claims"],
        mean=tensors.get("scaler/mean"),
        scale=tensors.get("scaler/scale"),
        proof=read_proof(path, tensors),
        ellzero_version=metadata["ellzero_version"],
    )
    try:
        _check_model(model)
        _check_use(model)
    except (InvalidParameterError, NonFiniteError, IncompatibleError) as error:
        raise ModelFileError(f"'{path}' cannot be used: {error.message}", _AGAIN) from error
    if model.n_nonzero != metadata["n_nonzero"]:
        raise ModelFileError(
            f"'{path}' says {metadata['n_nonzero']} nonzero parameters, but holds "
            f"{model.n_nonzero}.",
            _AGAIN,
        )
    return model


def _read_header(path: str, blob: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the safetensors header, its tensor entries checked, and the bytes after it."""
    cut = ModelFileError(f"'{path}' is cut short: the end of the file is missing.", _AGAIN)
    foreign = ModelFileError(
        f"'{path}' is not a model file.", "Give a file that `ellzero train` wrote."
    )
    if not blob:
        raise ModelFileError(f"'{path}' is empty.", _AGAIN)
    length = struct.unpack("<Q", blob[:8])[0] if len(blob) >= 8 else 0
    if len(blob) < 10 or blob[8:9] != b"{" or length > 100_000_000:
        raise foreign
    if 8 + length > len(blob):
        raise cut
    try:
        header = from_json(blob[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError("not a table")
        data = blob[8 + length :]
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            shape = entry["shape"]
            numbers = [begin, end, *shape]
            if any(type(i) is not int or i < 0 for i in numbers) or begin > end:
                raise ValueError("offsets")
            if not isinstance(entry["dtype"], str):
                raise ValueError("dtype")
            if end > len(data):
                raise cut
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise foreign from error
    return header, data


def _read_metadata(path: str, header: Mapping[str, Any]) -> dict[str, Any]:
    foreign = ModelFileError(
        f"'{path}' is a safetensors file, but not an ellzero model.",
        "Give a file that `ellzero train` wrote.",
    )
    text = (
        (header.get("__metadata__") or {}).get("ellzero")
        if isinstance(header.get("__metadata__"), dict)
        else None
    )
    if not isinstance(text, str):
        raise foreign
    try:
        metadata = from_json(text)
    except ValueError as error:
        raise ModelFileError(
            f"'{path}' is damaged: its settings cannot be read.", _AGAIN
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise foreign
    version = metadata.get("schema_version")
    if type(version) is not int:
        raise ModelFileError(f"'{path}' is damaged: it has no format version.", _AGAIN)
    if version != SCHEMA_VERSION:
        age, todo = (
            ("a newer", "Install a newer ellzero.")
            if version > SCHEMA_VERSION
            else ("an older", "Train the model again.")
        )
        raise ModelFileError(
            f"'{path}' has {age} format, version {version}; this ellzero ({__version__}) reads "
            f"version {SCHEMA_VERSION}.",
            todo,
        )
    for name, kinds in _FIELDS.items():
        value = metadata.get(name)
        if name not in metadata or not isinstance(value, kinds) or isinstance(value, bool):
            raise ModelFileError(
                f"'{path}' is damaged: the field '{name}' is missing or of a wrong type.", _AGAIN
            )
    listed = [metadata[n] for n in ("params", "tensors", "feature_names")]
    if not all(isinstance(n, str) for part in listed for n in part):
        raise ModelFileError(f"'{path}' is damaged: a name in it is not text.", _AGAIN)
    return metadata


def _read_tensors(path: str, blob: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as unpack

    try:
        return dict(unpack(blob))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFileError(
            f"'{path}' is damaged: its tensors cannot be read.", _AGAIN
        ) from error
