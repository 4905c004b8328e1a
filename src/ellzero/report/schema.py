"""The summary: one plain dict from which every form of a report is made.

A summary holds JSON values only. Every key is optional; a section is drawn when its key is
present. `None` and NaN stand for "unknown" everywhere and are shown as a dash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from ellzero.errors import InvalidParameterError

SCHEMA_VERSION = 1

Number = float | int | None
Cell = float | int | bool | str | None

CLAIMS: dict[str, str] = {
    "feasible": "inside the budget, nothing more",
    "stationary": "stationary: stable under hard thresholding",
    "coordinatewise": "no exchange of one support entry improves it",
    "gap": "within a proven gap of the global optimum",
    "optimal": "proven globally optimal",
}
"""Claims from the weakest to the strongest, with their sentences."""


class DataSummary(TypedDict, total=False):
    """The data; `messages` are sentences such as "Column 'color' was encoded as 3 columns."."""

    name: str
    n_samples: int
    n_features: int
    n_classes: int
    features: list[str]
    target: str
    task: str
    classes: list[str]
    n_train: int
    n_test: int
    fingerprint: str
    sample_shape: list[int]
    messages: list[str]


class DenseSummary(TypedDict, total=False):
    """The model without a budget; accuracies are fractions in [0, 1]."""

    value: Number
    accuracy_train: Number
    accuracy_test: Number
    n_parameters: int


class PathRow(TypedDict, total=False):
    """One budget; `epsilon` is absolute, `gap` relative, `claim` is a key of `CLAIMS`.

    `cv` is the mean loss over the folds of a cross-validation and `cv_error` its standard error;
    `support` are the names of the chosen features.
    """

    n_nonzero: int
    value: Number
    epsilon: Number
    accuracy_train: Number
    accuracy_test: Number
    status: str | None
    claim: str | None
    claim_sentence: str | None
    gap: Number
    lower_bound: Number
    n_starts: int | None
    hit_rate: Number
    stable: bool | None
    largest_stable_step: Number
    swap_level: int | None
    seconds: Number
    median_value: Number
    worst_value: Number
    selected: bool
    ebic: Number
    bic: Number
    aic: Number
    sic: Number
    cv: Number
    cv_error: Number
    support: list[str]


class TensorSummary(TypedDict, total=False):
    """One tensor of weights; `values` is a list or a list of rows."""

    name: str
    shape: list[int]
    values: Sequence[Any]
    row_labels: list[str]
    column_labels: list[str]


class WeightsSummary(TypedDict, total=False):
    """The chosen model, tensor by tensor."""

    tensors: list[TensorSummary]


class SupportEntry(TypedDict):
    """One nonzero of the chosen model, under a name for people."""

    name: str
    value: Number


class CheckSummary(TypedDict, total=False):
    """One inequality of a certificate."""

    name: str
    value: Number
    bound: Number
    passed: bool
    claim: str


class CertificateSummary(TypedDict, total=False):
    """What `Certificate.to_dict` returns."""

    claim: str | None
    sentence: str
    lower_bound: Number
    gap: Number
    checks: list[CheckSummary]
    assumptions: list[str]
    measures: Mapping[str, Cell]


class SupportsSummary(TypedDict, total=False):
    """The support at some iterations: one row of zeros and ones per iteration."""

    iterations: list[int]
    masks: list[list[int]]
    labels: list[str]
    note: str


class SmoothnessRow(TypedDict, total=False):
    """One estimate of the restricted smoothness constant."""

    method: str
    kind: Literal["lower estimate", "upper bound", "exact"]
    n_nonzero: int | None
    value: Number
    note: str


class SeriesSummary(TypedDict, total=False):
    """One series of a chart; `style` is "line" (default), "points" or "thin"."""

    name: str
    x: list[Number]
    y: list[Number]
    style: Literal["line", "points", "thin"]


class TraceSummary(TypedDict, total=False):
    """Convergence: `iterations` and `values`, or several named `series` with `x` and `y`."""

    iterations: list[int]
    values: list[Number]
    series: list[SeriesSummary]
    y_label: str
    note: str


class EpochSummary(TypedDict, total=False):
    """The end of one epoch; `loss` is the mean over its batches."""

    epoch: int
    step: int
    loss: Number
    accuracy_test: Number
    seconds: Number


class TrainingRunSummary(TypedDict, total=False):
    """Curves of one training by minibatches, at `steps`: loss, learning rate, nonzeros."""

    name: str
    steps: list[int]
    loss: list[Number]
    lr: list[Number]
    n_nonzero: list[int]
    epochs: list[EpochSummary]


class TrainingSummary(TypedDict, total=False):
    """How a network was trained: the chosen run first; `n_entries` are counted by the budget."""

    n_entries: int
    runs: list[TrainingRunSummary]


class PictureSummary(TypedDict):
    """Nonzeros of blocks of a matrix of `shape`; `most` are the entries of a whole block."""

    block: list[int]
    most: int
    shape: list[int]
    counts: list[list[int]]


class LayerSummary(TypedDict, total=False):
    """One tensor of a network; an output is dead when none of its weights differs from zero."""

    name: str
    shape: list[int]
    n_entries: int
    n_nonzero: int
    density: Number
    n_outputs: int
    dead_outputs: int
    n_inputs: int
    dead_inputs: int
    picture: PictureSummary
    inputs_picture: PictureSummary


class FileSummary(TypedDict, total=False):
    """Size of the compressed model file, and of all entries."""

    bytes: int
    dense_bytes: int


class EscapeSummary(TypedDict, total=False):
    """Runs that start beside unstable points.

    `distance` and `values` hold one list per shown run, an entry per item of `iterations`;
    `final_values` and `final_counts` are the distinct values that the runs end with.
    """

    starts: int
    left: int
    returned: int
    monotone: int
    step_size: Number
    best_value: Number
    iterations: list[int]
    distance: list[list[Number]]
    values: list[list[Number]]
    final_values: list[Number]
    final_counts: list[int]
    note: str


class ReferenceSummary(TypedDict, total=False):
    """Reference figures beside ours; booleans in `rows` become "ok" and "differs".

    `decimals` fixes the decimals of floats; without it they have six significant digits.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    decimals: int
    note: str


class FigureSummary(TypedDict, total=False):
    """A further figure: `kind` names a function of `figures`, `options` are its arguments."""

    kind: str
    options: dict[str, Any]


class Summary(TypedDict, total=False):
    """Everything a report can show."""

    schema_version: int
    title: str
    headline: str
    command: str
    settings: Mapping[str, Cell]
    versions: Mapping[str, Cell]
    data: DataSummary
    dense: DenseSummary
    path: list[PathRow]
    weights: WeightsSummary
    support: list[SupportEntry]
    certificate: CertificateSummary
    training: TrainingSummary
    layers: list[LayerSummary]
    file: FileSummary
    counted: str
    trace: TraceSummary
    supports: SupportsSummary
    smoothness: list[SmoothnessRow]
    escape: EscapeSummary
    reference: ReferenceSummary
    figures: list[FigureSummary]
    tables: list[ReferenceSummary]


def _plain(value: Any) -> Any:
    """Return `value` with NaN and infinities as None or text, as JSON demands."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def check(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `summary` after checking that this version can show it.

    Raises
    ------
    InvalidParameterError
        If `summary` is not a mapping, or its `schema_version` is not known.
    """
    if not isinstance(summary, Mapping):
        raise InvalidParameterError(
            f"`summary` must be a mapping, got {type(summary).__name__}.",
            "Pass the dict that `ellzero train --json` prints.",
        )
    version = summary.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise InvalidParameterError(
            f"`schema_version` must be {SCHEMA_VERSION}, got {version!r}.",
            "Make the report with the version of ellzero that wrote the summary.",
        )
    return summary


def to_json(summary: Mapping[str, Any]) -> str:
    """Return the summary as JSON text.

    Parameters
    ----------
    summary : mapping
        The summary, see `Summary`.

    Returns
    -------
    str
        Strict JSON with `schema_version`; NaN becomes null, infinities "inf" and "-inf".

    Raises
    ------
    InvalidParameterError
        If `summary` is not a mapping, or its `schema_version` is not known.

    Examples
    --------
    >>> from ellzero.report import to_json
    >>> to_json({"dense": {"value": float("nan")}}).split()
    ['{', '"schema_version":', '1,', '"dense":', '{', '"value":', 'null', '}', '}']
    """
    plain = {"schema_version": SCHEMA_VERSION, **_plain(check(summary))}
    return json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False)
