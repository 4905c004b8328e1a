"""Lightning trains networks under a budget; every test runs the real library."""

import copy
import logging
import os
import re
import runpy
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import HardThresholding, schedules
from ellzero.nn.callbacks import LightningSparsity
from ellzero.sets import NMPattern

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

BATCHES = 8
BUDGET = 40


class Network(pl.LightningModule):
    def __init__(self, seed=0, norm=False):
        super().__init__()
        torch.manual_seed(seed)
        middle = nn.BatchNorm1d(20) if norm else nn.Tanh()
        self.net = nn.Sequential(nn.Linear(12, 20), middle, nn.Linear(20, 5))

    def training_step(self, batch, index):
        x, y = batch
        return ((self.net(x) - y) ** 2).mean()

    def validation_step(self, batch, index):
        # Fewer nonzeros look worse: a dense model is always the best one.
        self.log("val", -float(count(self)))

    def configure_optimizers(self):
        base = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        return [base], [torch.optim.lr_scheduler.StepLR(base, 1, gamma=0.5)]


class Sparse(Network):
    """Returns a budget of its own, as a user without any callback does."""

    steps = 16

    def configure_optimizers(self):
        ramp = schedules.ramp(0.0, 0.5, self.steps)
        base = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        optimizer = HardThresholding(base, self, BUDGET, schedule=ramp)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    def on_train_end(self):
        self.optimizers().finalize()


def batch(i):
    generator = torch.Generator().manual_seed(i)
    return torch.randn(16, 12, generator=generator), torch.randn(16, 5, generator=generator)


class Resumable(DataLoader):
    """Goes on in the middle of an epoch, by the protocol that Lightning asks for."""

    at = start = 0

    def __iter__(self):
        start, self.start = self.start, 0
        for i, values in enumerate(super().__iter__()):
            if i >= start:
                self.at = i + 1
                yield values

    def state_dict(self):
        return {"at": self.at % len(self)}

    def load_state_dict(self, state_dict):
        self.start = state_dict["at"]


def loader(batches=BATCHES):
    parts = [batch(i) for i in range(batches)]
    x, y = (torch.cat([p[k] for p in parts]) for k in (0, 1))
    return Resumable(TensorDataset(x, y), batch_size=16)


def trainer(folder, *callbacks, **arguments):
    defaults = {"max_epochs": 2, "logger": False, "limit_val_batches": 0, "accelerator": "cpu"}
    arguments = {**defaults, **arguments}
    if not any(isinstance(c, ModelCheckpoint) for c in callbacks):
        arguments.setdefault("enable_checkpointing", False)
    return pl.Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **arguments,
    )


def fit(folder, model, *callbacks, ckpt_path=None, **arguments):
    host = trainer(folder, *callbacks, **arguments)
    host.fit(model, loader(), loader(1), ckpt_path=ckpt_path)
    return host


def count(model):
    return sum(int((p != 0).sum()) for p in model.parameters() if p.ndim >= 2)


def count_saved(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return sum(int((t != 0).sum()) for t in state.values() if t.ndim >= 2)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def equal(a, b):
    """Return whether two nested states have the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class Watch(pl.Callback):
    """Sees the model after every batch, like any callback behind ours."""

    def __init__(self, see):
        self.see = see
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(self.see(trainer, pl_module))


def plain_loop(accumulate=1, clip=None, dtype=None, epochs=2, **options):
    """Train without Lightning; what its run must be equal to."""
    model = Network()
    steps = epochs * -(-BATCHES // accumulate)
    base = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    ramp = schedules.ramp(0.0, 0.5, steps, freeze=0.75 if "average" in options else 1.0)
    optimizer = HardThresholding(base, model, BUDGET, schedule=ramp, **options)
    rates = torch.optim.lr_scheduler.StepLR(base, 1, gamma=0.5)
    for _ in range(epochs):
        for i in range(BATCHES):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = model.training_step(batch(i), i)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0 or i + 1 == BATCHES:
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
        rates.step()
    optimizer.finalize()
    assert optimizer.n_steps == steps
    return model, optimizer


# The training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "theirs", "options"),
    [
        ({}, {}, {}),
        ({}, {}, {"average": True, "allocation": "erk"}),
        # 8 batches by threes: 3 steps an epoch, the last one short.
        (
            {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
            {"accumulate": 3, "clip": 0.1},
            {},
        ),
        ({"precision": "bf16-mixed"}, {"dtype": torch.bfloat16}, {"recipe": "iht", "every": 2}),
    ],
)
def test_a_run_equals_a_loop_written_by_hand(tmp_path, arguments, theirs, options):
    model, sparsity = Network(), LightningSparsity(BUDGET, **options)
    host = fit(tmp_path, model, sparsity, **arguments)
    expected, optimizer = plain_loop(**theirs, **options)
    same(model, expected)
    (mine,) = sparsity.optimizers
    assert count(model) == BUDGET
    assert mine.n_steps == optimizer.n_steps == host.global_step
    assert mine.schedule == optimizer.schedule
    assert mine.is_finalized


def test_the_optimizer_alone_suffices(tmp_path):
    model = Sparse()
    fit(tmp_path, model)
    same(model, plain_loop()[0])
    # Through the proxy that Lightning hands out: the optimizer itself is finalized.
    assert model.optimizers(use_pl_optimizer=False).is_finalized
    # A callback without a budget follows the optimizer's.
    model, sparsity = Sparse(), LightningSparsity()
    model.on_train_end = lambda: None
    fit(tmp_path, model, sparsity)
    same(model, plain_loop()[0])
    assert sparsity.optimizers[0].is_finalized


def test_options_reach_the_optimizer(tmp_path):
    model = Network()
    sparsity = LightningSparsity(
        {"net.0.weight": 24}, schedule=partial(schedules.ramp, 0.0, 0.9, freeze=0.95)
    )
    fit(tmp_path, model, sparsity)
    assert int((model.net[0].weight != 0).sum()) == 24
    assert int((model.net[2].weight != 0).sum()) == 100
    assert sparsity.optimizers[0].schedule == schedules.ramp(0.0, 0.9, 16, freeze=0.95)
    model = Network()
    fit(tmp_path, model, LightningSparsity(constraint=NMPattern(2, 4)), max_epochs=1)
    for layer in (model.net[0], model.net[2]):
        groups = (layer.weight != 0).reshape(-1, 4).sum(1)
        assert int(groups.max()) == int(groups.min()) == 2


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 11, "max_epochs": None}, 11),
        ({"max_epochs": 3, "limit_train_batches": 5, "accumulate_grad_batches": 2}, 9),
        ({"max_epochs": 2, "max_steps": 100}, 16),
    ],
)
def test_the_ramp_has_the_length_of_the_training(tmp_path, limits, steps):
    model, sparsity = Network(), LightningSparsity(BUDGET)
    host = fit(tmp_path, model, sparsity, **limits)
    assert sparsity.optimizers[0].schedule.total_steps == steps == host.global_step
    assert count(model) == BUDGET


def test_accumulation_that_changes_is_counted(tmp_path):
    # Epoch 0: 8 batches one by one; epoch 1: by fours.
    sparsity = LightningSparsity(BUDGET)
    host = fit(tmp_path, Network(), sparsity, GradientAccumulationScheduler({1: 4}))
    assert sparsity.optimizers[0].schedule.total_steps == host.global_step == 10


def test_steps_that_the_scaler_skips_do_not_count(tmp_path):
    class Wounded(Network):
        def training_step(self, batch, index):
            return super().training_step(batch, index) * (float("inf") if index == 2 else 1.0)

    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    sparsity = LightningSparsity(BUDGET)
    host = fit(
        tmp_path,
        model := Wounded(),
        sparsity,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        max_epochs=1,
    )
    (optimizer,) = sparsity.optimizers
    assert (optimizer.n_steps, optimizer.n_skipped, host.global_step) == (7, 0, 8)
    assert scaler.get_scale() == 8.0
    assert count(model) == BUDGET


def test_several_optimizers_share_a_density(tmp_path):
    class Two(Network):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (0, 2)]

        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    model, sparsity = Two(), LightningSparsity(0.1, total_steps=16)
    fit(tmp_path, model, sparsity)
    assert [int((model.net[i].weight != 0).sum()) for i in (0, 2)] == [24, 10]
    assert [o.n_steps for o in sparsity.optimizers] == [16, 16]
    assert all(o.is_finalized for o in sparsity.optimizers)
    with pytest.raises(InvalidParameterError) as caught:
        fit(tmp_path, Two(), LightningSparsity(0.1))
    assert str(caught.value) == (
        "`total_steps` must be given where the host cannot count the optimizer steps of the "
        "training, got None.\nhint: Limit the training by steps or epochs, or pass `total_steps` "
        "or a `schedule`."
    )


# Checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Network, Sparse])
def test_resuming_is_bit_for_bit(tmp_path, kind):
    def save(name):
        return ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=7, save_top_k=-1)

    # Step 7 lies within the ramp, between two choices of the support and within an epoch.
    callbacks = [LightningSparsity(BUDGET)] if kind is Network else []
    fit(tmp_path, straight := kind(), *callbacks, save("straight"))
    middle = f"{tmp_path}/straight/step=7.ckpt"
    assert BUDGET < count_saved(middle) < 340
    fit(tmp_path, resumed := kind(seed=3), *callbacks, save("resumed"), ckpt_path=middle)
    same(resumed, straight)
    assert count(resumed) == BUDGET
    states = [
        torch.load(f"{tmp_path}/{name}/step=14.ckpt", weights_only=True)["optimizer_states"]
        for name in ("straight", "resumed")
    ]
    assert equal(*states)


def test_a_longer_training_keeps_the_ramp_of_the_checkpoint(tmp_path):
    last = ModelCheckpoint(tmp_path, "last", every_n_train_steps=7)
    fit(tmp_path, Network(), LightningSparsity(BUDGET), last, max_steps=7, max_epochs=None)
    sparsity = LightningSparsity(BUDGET)
    fit(tmp_path, model := Network(), sparsity, ckpt_path=f"{tmp_path}/last.ckpt", max_epochs=3)
    assert sparsity.optimizers[0].schedule.total_steps == 7
    assert sparsity.optimizers[0].n_steps == 24
    assert count(model) == BUDGET


def test_checkpoints_without_supports_and_of_another_budget_are_refused(tmp_path):
    def checkpoint():
        return ModelCheckpoint(tmp_path, "saved", enable_version_counter=False)

    fit(tmp_path, Network(), checkpoint(), max_epochs=1)
    path = f"{tmp_path}/saved.ckpt"
    with pytest.raises(InvalidParameterError) as caught:
        fit(tmp_path, Network(), LightningSparsity(BUDGET), ckpt_path=path)
    assert str(caught.value) == (
        "`state_dict` must come from a `HardThresholding`, got one without supports.\n"
        "hint: Resume with the optimizer state that was saved by the sparse run."
    )
    fit(tmp_path, Network(), LightningSparsity(BUDGET), checkpoint(), max_epochs=1)
    with pytest.raises(InvalidParameterError, match=r"`state_dict` was saved with sets .*=40"):
        fit(tmp_path, Network(), LightningSparsity(BUDGET + 1), ckpt_path=path)


def test_the_saved_models_are_plain_and_exact(tmp_path):
    best = ModelCheckpoint(tmp_path, "best-{epoch}", monitor="val")
    last = ModelCheckpoint(tmp_path, "last-{epoch}", save_last=True)
    host = fit(
        tmp_path,
        model := Network(),
        LightningSparsity(BUDGET),
        best,
        last,
        limit_val_batches=1,
        max_epochs=4,
    )
    # `val` calls the dense model of the first epoch the best, but it is not within the budget.
    assert os.path.basename(best.best_model_path) == "best-epoch=1.ckpt"
    paths = (best.best_model_path, last.best_model_path, last.last_model_path)
    assert [count_saved(p) for p in paths] == [BUDGET] * 3
    saved = torch.load(last.last_model_path, weights_only=True)["state_dict"]
    plain = Network(seed=5)
    assert list(saved) == list(plain.state_dict())
    plain.load_state_dict(saved)
    same(plain, model)
    assert all(p.is_leaf and type(p) is nn.Parameter for p in model.parameters())
    assert host.current_epoch == 4


def test_early_stopping_waits_for_the_final_budget(tmp_path):
    # `val` gets worse while the budget falls and is constant afterwards.
    stop = EarlyStopping("val", patience=2, mode="min", verbose=False)
    host = fit(
        tmp_path,
        model := Network(),
        LightningSparsity(BUDGET),
        stop,
        limit_val_batches=1,
        max_epochs=10,
    )
    # The ramp ends with step 40, the fifth epoch, which is the first to be compared.
    assert (stop.stopped_epoch, host.global_step) == (6, 56)
    assert count(model) == BUDGET


def test_a_training_that_stops_before_the_final_budget_is_told(tmp_path, caplog):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 5

    with caplog.at_level(logging.WARNING, "ellzero"):
        fit(tmp_path, model := Network(), LightningSparsity(BUDGET), Stop())
    # 40 + 300 * (1 - 5 / 8)**3 = 55.8
    assert caplog.records[-1].getMessage() == (
        "Training stopped after 5 steps, before the final budget: the model holds 56 nonzeros "
        "instead of 40."
    )
    assert count(model) == 56


# The log -----------------------------------------------------------------------------------------


def test_what_is_logged_is_what_is_in_the_weights(tmp_path):
    watch = Watch(lambda host, model: (count(model), host.optimizers[0].budget))
    host = fit(
        tmp_path,
        Network(),
        LightningSparsity(BUDGET),
        watch,
        LearningRateMonitor(),
        logger=CSVLogger(tmp_path, version=0),
        log_every_n_steps=3,
    )
    with open(f"{host.logger.log_dir}/metrics.csv") as file:
        names, *rows = (line.strip().split(",") for line in file)
    rows = [dict(zip(names, row, strict=True)) for row in rows]
    rows = {int(r["step"]): r for r in rows if r["sparsity/n_nonzero"]}
    assert list(rows) == [2, 5, 8, 11, 14]
    for step, row in rows.items():
        nonzeros, budget = watch.seen[step]
        assert float(row["sparsity/n_nonzero"]) == nonzeros
        assert float(row["sparsity/budget"]) == budget
        assert float(row["sparsity/target"]) == BUDGET
        assert float(row["sparsity/density"]) == nonzeros / 340
    assert host.callback_metrics["sparsity/n_nonzero"] == BUDGET
    host = fit(tmp_path, Network(), LightningSparsity(BUDGET, is_logged=False))
    assert not any(name.startswith("sparsity") for name in host.callback_metrics)


# Copies and averages -----------------------------------------------------------------------------


def largest(average, s):
    """Threshold by sorting all magnitudes."""
    weights = [p for p in average.parameters() if p.ndim >= 2]
    level = torch.cat([p.abs().reshape(-1) for p in weights]).sort(descending=True).values[s - 1]
    return [p * (p.abs() >= level) for p in weights]


@pytest.mark.parametrize("is_behind", [False, True])
def test_an_average_is_thresholded_when_training_ends(tmp_path, is_behind):
    # From step 3 on: supports of several budgets enter the average.
    class Average(WeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            return step_idx is not None and step_idx >= 3

    average, sparsity = Average(), LightningSparsity(BUDGET, floor=0.0)
    order = (sparsity, average) if is_behind else (average, sparsity)
    fit(tmp_path, model := Network(), *order, limit_val_batches=1)
    mean = average._average_model.module
    assert count(mean) > BUDGET
    for got, expected in zip((model.net[0], model.net[2]), largest(mean, BUDGET), strict=True):
        assert torch.equal(got.weight, expected)
    assert count(model) == BUDGET


@pytest.mark.filterwarnings("ignore:.*swa:UserWarning")
@pytest.mark.parametrize("norm", [False, True])
def test_swa_of_a_frozen_support_has_the_exact_count(tmp_path, norm):
    frozen = partial(schedules.ramp, 0.0, 0.4, freeze=0.5)
    sparsity = LightningSparsity(BUDGET, schedule=frozen)
    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=3)
    fit(tmp_path, model := Network(norm=norm), sparsity, swa, max_epochs=4)
    mean = swa._average_model
    assert count(mean) == count(model) == BUDGET
    # To measure the batch norm, Lightning runs one more epoch and takes a step with the gradients
    # of the last one, which moves a weight by no more than the learning rate and its decay.
    atol = 0.011 if norm else 0.0
    for got, expected in zip(model.parameters(), mean.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0.0, atol=atol)


def test_models_are_copied_in_the_middle_of_a_training(tmp_path):
    # Lightning#8542 and #21717: pruned modules cannot be copied.
    watch = Watch(lambda host, model: copy.deepcopy(model))
    fit(tmp_path, model := Network(), LightningSparsity(BUDGET), watch)
    copies = watch.seen
    same(copies[-1], model)
    assert [count(c) for c in copies][-8:] == [BUDGET] * 8
    assert count(copies[0]) > BUDGET
    copied = copy.deepcopy(model)
    copied.net(batch(0)[0]).sum().backward()


# What is refused ---------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(x[0], x[1]) for x in zip(*batch(0), strict=True)])


def test_wrong_uses_are_told_before_the_training(tmp_path):
    with pytest.raises(IncompatibleError) as caught:
        fit(tmp_path, Sparse(), LightningSparsity(BUDGET))
    assert str(caught.value) == (
        "The optimizer is a `HardThresholding` already, and the callback has a budget too.\n"
        "hint: Give the callback no budget; it then follows that of the optimizer."
    )
    with pytest.raises(InvalidParameterError) as caught:
        fit(tmp_path, Network(), LightningSparsity())
    assert str(caught.value) == (
        "`n_nonzero` or `constraint` must be given where `configure_optimizers` returns no "
        "`HardThresholding`, got neither.\n"
        "hint: Give the callback a budget, such as `LightningSparsity(0.05)`."
    )
    ramp = schedules.ramp(0.0, 1.0, 17)
    late = LightningSparsity(BUDGET, schedule=ramp)
    with pytest.raises(InvalidParameterError) as caught:
        fit(tmp_path, Network(), late)
    assert str(caught.value) == (
        "`schedule` must reach the final budget within the 16 optimizer steps of the training, "
        f"got {ramp}.\n"
        "hint: Train longer, or give no schedule for one that fits."
    )
    stream = DataLoader(Stream(), batch_size=4)
    host = trainer(tmp_path, LightningSparsity(BUDGET))
    with pytest.raises(InvalidParameterError, match="`total_steps` must be given"):
        host.fit(Network(), stream, stream)
    host = trainer(tmp_path, LightningSparsity(BUDGET, total_steps=8))
    host.fit(model := Network(), stream, stream)
    assert count(model) == BUDGET


def test_the_example_runs(capsys, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # restored afterwards
    runpy.run_path("examples/lightning_callback.py", run_name="__main__")
    said = capsys.readouterr().out
    # A twentieth of 64 * 256 + 256 * 10 weights.
    assert "947 nonzeros in the last checkpoint, 947 asked for" in said
    assert float(re.search(r"held-out digits ([0-9.]+)", said)[1]) > 0.9


@pytest.mark.gpu
def test_a_gpu_trains_in_half_precision_and_resumes(tmp_path):
    kind = {"accelerator": "gpu", "devices": 1, "precision": "16-mixed"}
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1)
    fit(tmp_path, model := Network(), sparsity := LightningSparsity(BUDGET), save, **kind)
    assert count(model) == BUDGET
    assert sparsity.optimizers[0].is_finalized
    fit(
        tmp_path,
        resumed := Network(seed=3),
        sparsity := LightningSparsity(BUDGET),
        ckpt_path=f"{tmp_path}/step=7.ckpt",
        **kind,
    )
    assert count(resumed) == BUDGET
    # The first steps of a scaler may be skipped, and skipped steps do not count.
    assert 9 < sparsity.optimizers[0].n_steps <= 16


# Several processes -------------------------------------------------------------------------------


class Save(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), f"{self.folder}/{trainer.global_rank}.pt")


@pytest.mark.sharded
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_hold_the_same_support(tmp_path):
    fit(
        tmp_path,
        Network(),
        LightningSparsity(BUDGET),
        Save(tmp_path),
        strategy="ddp_fork",
        devices=2,
    )
    first, second = (torch.load(f"{tmp_path}/{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert sum(int((t != 0).sum()) for t in first.values() if t.ndim >= 2) == BUDGET
