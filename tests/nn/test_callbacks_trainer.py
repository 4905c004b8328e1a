"""The Hugging Face Trainer trains networks under a budget; every test runs the real library."""

import copy
import logging
import os
import runpy
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.optim import swa_utils
from torch.utils.data import Dataset, IterableDataset, SequentialSampler

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import (
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import HardThresholding, schedules
from ellzero.nn.callbacks import TrainerSparsity
from ellzero.sets import NMPattern

logging.getLogger("transformers").setLevel(logging.ERROR)

BATCHES = 10
BUDGET = 40


class Network(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5))

    def forward(self, x, labels=None):
        out = self.net(x)
        return {"loss": ((out - labels) ** 2).mean(), "logits": out}


class Examples(Dataset):
    def __init__(self, size=8 * BATCHES):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(size, 12, generator=generator)
        self.y = torch.randn(size, 5, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.y[i]}


class InOrder(Trainer):
    """Reads the examples in order, so that a loop written by hand can do the same."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def settings(folder, **arguments):
    defaults = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "save_strategy": "no",
        "logging_strategy": "no",
        "seed": 0,
    }
    return TrainingArguments(str(folder), **{**defaults, **arguments})


def train(folder, model, *callbacks, host=Trainer, resume=None, optimizer=None, **arguments):
    trainer = host(
        model,
        settings(folder, **arguments),
        train_dataset=Examples(),
        eval_dataset=Examples(8),
        callbacks=list(callbacks),
        optimizers=(optimizer, None),
    )
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer


def wrap(model, steps=2 * BATCHES, **options):
    base = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    ramp = schedules.ramp(0.0, 0.5, steps)
    return HardThresholding(base, model, BUDGET, schedule=ramp, **options)


def count(model):
    return sum(int((p != 0).sum()) for p in model.parameters() if p.ndim >= 2)


def load(folder, seed=7):
    from safetensors.torch import load_file

    model = Network(seed)
    model.load_state_dict(load_file(f"{folder}/model.safetensors"))
    return model


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


def leaves(state):
    """Return all tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state
    nested = (p for p in parts if isinstance(p, dict | list | tuple | torch.Tensor))
    return [t for part in nested for t in leaves(part)]


def plain_loop(accumulate=1, clip=1.0, dtype=None, **options):
    """Train without the Trainer; what its run must be equal to."""
    model, data = Network(), Examples()
    per_epoch = -(-BATCHES // accumulate)
    optimizer = wrap(model, 2 * per_epoch, **options)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: (1 + torch.cos(torch.tensor(torch.pi * t / (2 * per_epoch))).item()) / 2,
    )
    for _ in range(2):
        for start in range(0, BATCHES, accumulate):
            parts = range(start, min(start + accumulate, BATCHES))
            for i in parts:
                part = slice(8 * i, 8 * i + 8)
                with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                    loss = model(data.x[part], data.y[part])["loss"]
                (loss / len(parts)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
    optimizer.finalize()
    return model, optimizer


class Watch(TrainerCallback):
    """Sees the model after every step, like any callback behind ours."""

    def __init__(self, see):
        self.see = see
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(self.see(model))


# The training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "theirs", "options"),
    [
        ({}, {}, {}),
        # 10 batches by threes: 4 steps an epoch, the last one of a single batch.
        (
            {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1},
            {"accumulate": 3, "clip": 0.1},
            {},
        ),
        ({"bf16": True}, {"dtype": torch.bfloat16}, {"recipe": "iht", "every": 2}),
    ],
)
def test_a_run_equals_a_loop_written_by_hand(tmp_path, arguments, theirs, options):
    model, sparsity = Network(), TrainerSparsity(BUDGET, **options)
    host = train(tmp_path, model, sparsity, host=InOrder, **arguments)
    expected, optimizer = plain_loop(**theirs, **options)
    for name, tensor in model.state_dict().items():
        # Rates of the two cosines differ in the last bits.
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-4, atol=1e-6)
        assert torch.equal(tensor != 0, expected.state_dict()[name] != 0)
    mine = sparsity.optimizer
    assert count(model) == BUDGET
    assert mine.n_steps == optimizer.n_steps == host.state.global_step
    assert mine.schedule == optimizer.schedule
    assert mine.is_finalized


def test_the_optimizer_alone_suffices(tmp_path):
    model = Network()
    train(tmp_path, model, optimizer=wrap(model), save_strategy="steps", save_steps=7)
    assert count(model) == BUDGET
    again = Network(seed=3)
    train(tmp_path, again, optimizer=wrap(again), resume=tmp_path / "checkpoint-7")
    same(again, model)
    assert BUDGET < count(load(tmp_path / "checkpoint-7")) < 340
    # A callback without a budget follows that of the optimizer.
    model, sparsity = Network(), TrainerSparsity()
    train(tmp_path, model, sparsity, optimizer=(optimizer := wrap(model)))
    assert sparsity.optimizer is optimizer
    assert optimizer.is_finalized


def test_options_reach_the_optimizer(tmp_path):
    ramp = partial(schedules.ramp, 0.0, 0.9, freeze=0.95)
    sparsity = TrainerSparsity({"net.0.weight": 24}, schedule=ramp)
    train(tmp_path, model := Network(), sparsity)
    assert int((model.net[0].weight != 0).sum()) == 24
    assert int((model.net[2].weight != 0).sum()) == 100
    assert sparsity.optimizer.schedule == ramp(20)
    train(tmp_path, model := Network(), TrainerSparsity(constraint=NMPattern(2, 4)))
    for layer in (model.net[0], model.net[2]):
        groups = (layer.weight != 0).reshape(-1, 4).sum(1)
        assert int(groups.max()) == int(groups.min()) == 2


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 11}, 11),
        ({"num_train_epochs": 1.5, "gradient_accumulation_steps": 2}, 8),
    ],
)
def test_the_ramp_has_the_length_of_the_training(tmp_path, limits, steps):
    model, sparsity = Network(), TrainerSparsity(BUDGET)
    host = train(tmp_path, model, sparsity, **limits)
    assert sparsity.optimizer.schedule.total_steps == steps == host.state.global_step
    assert count(model) == BUDGET


def test_steps_that_the_scaler_skips_do_not_count(tmp_path):
    class Wounded(Network):
        calls = 0

        def forward(self, x, labels=None):
            self.calls += 1
            out = super().forward(x, labels)
            return {**out, "loss": out["loss"] * (float("inf") if self.calls == 3 else 1.0)}

    model, sparsity = Wounded(), TrainerSparsity(BUDGET)
    host = Trainer(model, settings(tmp_path), train_dataset=Examples(), callbacks=[sparsity])
    # accelerate gives scalers to GPUs alone; the code that uses them is the same.
    scaler = host.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    host.train()
    assert (sparsity.optimizer.n_steps, sparsity.optimizer.n_skipped) == (19, 0)
    assert host.state.global_step == 20
    assert scaler.get_scale() == 8.0
    assert count(model) == BUDGET


def test_training_twice_and_after_a_failure_starts_anew(tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 8:
                raise RuntimeError("out of memory")

    model, sparsity = Network(), TrainerSparsity(BUDGET)
    host = Trainer(
        model, settings(tmp_path), train_dataset=Examples(), callbacks=[sparsity, fail := Fail()]
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        host.train()
    host.remove_callback(fail)
    for _ in range(2):
        host.train()
        assert sparsity.optimizer.n_steps == 20
        assert not isinstance(sparsity.optimizer.optimizer, HardThresholding)
        assert count(model) == BUDGET


# Checkpoints -------------------------------------------------------------------------------------


def test_resuming_is_bit_for_bit(tmp_path):
    # Step 7 lies within the ramp, between two choices of the support and within an epoch.
    saving = {"save_strategy": "steps", "save_steps": 7, "gradient_accumulation_steps": 2}
    saving["num_train_epochs"] = 4
    folders = [tmp_path / "straight", tmp_path / "resumed"]
    train(folders[0], straight := Network(), TrainerSparsity(BUDGET), **saving)
    middle = folders[0] / "checkpoint-7"
    assert BUDGET < count(load(middle)) < 340
    resumed, sparsity = Network(seed=3), TrainerSparsity(BUDGET)
    train(folders[1], resumed, sparsity, resume=middle, **saving)
    same(resumed, straight)
    assert count(resumed) == BUDGET
    assert sparsity.optimizer.n_steps == 20
    for step in (14, 20):
        states = [
            torch.load(f / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
            for f in folders
        ]
        assert equal(*states)
        assert count(load(folders[1] / f"checkpoint-{step}")) == BUDGET
    # The state of the budget is stored once, wherever it is found: two moments, the latent values
    # of 340 weights, their supports, and a few numbers.
    state = torch.load(middle / "optimizer.pt", weights_only=True)
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in leaves(state)}
    assert 2 * 4 * 365 + (4 + 1) * 340 <= sum(stored.values()) < 2 * 4 * 365 + (4 + 2) * 340
    # Without the callback, the same checkpoint is read by the optimizer alone.
    alone = Network(seed=4)
    groups = [{"params": [alone.net[i].weight for i in (0, 2)], "weight_decay": 0.0}]
    groups += [{"params": [alone.net[i].bias for i in (0, 2)], "weight_decay": 0.0}]
    optimizer = HardThresholding(
        torch.optim.AdamW(groups, lr=0.01), alone, BUDGET, schedule=schedules.ramp(0.0, 0.5, 20)
    )
    train(tmp_path, alone, optimizer=optimizer, resume=middle, **saving)
    same(alone, straight)


def test_a_longer_training_keeps_the_ramp_of_the_checkpoint(tmp_path):
    train(tmp_path, Network(), TrainerSparsity(BUDGET), max_steps=7, save_strategy="steps")
    model, sparsity = Network(), TrainerSparsity(BUDGET)
    train(tmp_path, model, sparsity, resume=tmp_path / "checkpoint-7")
    assert sparsity.optimizer.schedule.total_steps == 7
    assert sparsity.optimizer.n_steps == 20
    assert count(model) == BUDGET


def test_checkpoints_without_supports_and_of_another_budget_are_refused(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 7, "num_train_epochs": 1}
    for folder, save_only_model in (("dense", False), ("weights", True)):
        train(tmp_path / folder, Network(), save_only_model=save_only_model, **saving)
        with pytest.raises(InvalidParameterError) as caught:
            train(
                tmp_path,
                Network(),
                TrainerSparsity(BUDGET),
                resume=tmp_path / folder / "checkpoint-7",
            )
        assert str(caught.value) == (
            "The checkpoint of step 7 must hold the supports of a sparse training, got one "
            "without.\nhint: Resume a training that was saved with this callback, or load the "
            "weights alone and start anew."
        )
    model = Network()
    with pytest.raises(InvalidParameterError, match="got one without supports"):
        train(tmp_path, model, optimizer=wrap(model), resume=tmp_path / "dense" / "checkpoint-7")
    train(tmp_path / "sparse", Network(), TrainerSparsity(BUDGET), **saving)
    resume = tmp_path / "sparse" / "checkpoint-7"
    with pytest.raises(InvalidParameterError, match=r"`state_dict` was saved with sets .*=40"):
        train(tmp_path, Network(), TrainerSparsity(BUDGET + 1), resume=resume)


class Dense(Trainer):
    """Calls the model with the most nonzeros the best."""

    def evaluate(self, *args, **kwargs):
        metrics = {"eval_loss": -float(count(self.model))}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_strategy": "steps",
    "save_steps": 5,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
}


def test_the_best_and_the_last_model_are_plain_and_exact(tmp_path):
    model = Network()
    host = train(tmp_path, model, TrainerSparsity(BUDGET), host=Dense, **BEST)
    # The model of step 5 is better, but not within the budget; that of step 10 is loaded.
    assert host.state.best_global_step == 10
    same(model, load(tmp_path / "checkpoint-10"))
    counts = [count(load(tmp_path / f"checkpoint-{step}")) for step in (5, 10, 15, 20)]
    assert counts[0] > BUDGET
    assert counts[1:] == [BUDGET] * 3
    host.save_model(str(tmp_path / "saved"))
    assert count(load(tmp_path / "saved")) == BUDGET
    assert all(p.is_leaf and type(p) is nn.Parameter for p in model.parameters())


@pytest.mark.parametrize("is_behind", [False, True])
def test_early_stopping_waits_for_the_final_budget(tmp_path, is_behind):
    # The metric gets worse while the budget falls, up to step 20, and is constant afterwards.
    callbacks = [TrainerSparsity(BUDGET), EarlyStoppingCallback(early_stopping_patience=2)]
    model = Network()
    host = train(
        tmp_path,
        model,
        *(reversed(callbacks) if is_behind else callbacks),
        host=Dense,
        num_train_epochs=4,
        **BEST,
    )
    assert (host.state.best_global_step, host.state.global_step) == (20, 30)
    assert count(model) == BUDGET


def test_a_training_that_stops_before_the_final_budget_is_told(tmp_path, caplog):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    with caplog.at_level(logging.WARNING, "ellzero"):
        train(tmp_path, model := Network(), TrainerSparsity(BUDGET), Stop())
    # 40 + 300 * (1 - 5 / 10)**3 = 77.5
    assert caplog.records[-1].getMessage() == (
        "Training stopped after 5 steps, before the final budget: the model holds 78 nonzeros "
        "instead of 40."
    )
    assert count(model) == 78


# The log -----------------------------------------------------------------------------------------


def test_what_is_logged_is_what_is_in_the_weights(tmp_path):
    class Reporter(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs=None, model=None, **kwargs):
            self.seen.append((logs.get("sparsity/n_nonzero"), count(model)))

    logging_steps = {"logging_strategy": "steps", "logging_steps": 3, "save_strategy": "epoch"}
    reporter, sparsity = Reporter(), TrainerSparsity(BUDGET)
    host = train(tmp_path, Network(), sparsity, reporter, **logging_steps)
    rows = [row for row in host.state.log_history if "loss" in row or "train_loss" in row]
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 15, 18, 20]
    assert len(reporter.seen) == len(rows)
    for row, (logged, counted) in zip(rows, reporter.seen, strict=True):
        assert row["sparsity/n_nonzero"] == logged == counted
        assert row["sparsity/density"] == counted / 340
        assert row["sparsity/target"] == BUDGET
        assert row["sparsity/budget"] == counted
    assert rows[-1]["sparsity/n_nonzero"] == BUDGET
    host = train(tmp_path, Network(), TrainerSparsity(BUDGET, is_logged=False), **logging_steps)
    assert not any("sparsity/n_nonzero" in row for row in host.state.log_history)


# Models ------------------------------------------------------------------------------------------


def test_copies_and_averages_of_a_model_in_training(tmp_path):
    class Average(TrainerCallback):
        model = None

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step >= 15:
                self.model = self.model or swa_utils.AveragedModel(model)
                self.model.update_parameters(model)

    watch, average = Watch(copy.deepcopy), Average()
    frozen = partial(schedules.ramp, 0.0, 0.5, freeze=0.7)
    train(tmp_path, model := Network(), TrainerSparsity(BUDGET, schedule=frozen), average, watch)
    same(watch.seen[-1], model)
    assert count(watch.seen[0]) > BUDGET
    assert count(average.model.module) == BUDGET


class Tokens(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        tokens = (torch.arange(8) * (i + 1)) % 50
        return {"input_ids": tokens, "labels": tokens}


def test_a_language_model_with_tied_weights(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    keys = list(model.state_dict())
    host = Trainer(
        model, settings(tmp_path), train_dataset=Tokens(), callbacks=[TrainerSparsity(0.1)]
    )
    host.train()
    host.save_model()
    plain = LlamaForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert list(plain.state_dict()) == keys
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    # Embedding 800, attention 4 * 256, the gated layer 3 * 384: a tenth, tied weights once.
    assert count(plain) == count(model) == (800 + 1024 + 1152) // 10


# What is refused ---------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Examples(16))


def test_wrong_uses_are_told_before_the_training(tmp_path):
    model = Network()
    with pytest.raises(IncompatibleError, match="is a `HardThresholding` already"):
        train(tmp_path, model, TrainerSparsity(BUDGET), optimizer=wrap(model))
    with pytest.raises(InvalidParameterError) as caught:
        train(tmp_path, Network(), TrainerSparsity())
    assert str(caught.value) == (
        "`n_nonzero` or `constraint` must be given where the optimizer of the Trainer is no "
        "`HardThresholding`, got neither.\n"
        "hint: Give the callback a budget, such as `TrainerSparsity(0.05)`."
    )
    late = TrainerSparsity(BUDGET, schedule=schedules.ramp(0.0, 1.0, 21))
    with pytest.raises(InvalidParameterError, match="within the 20 optimizer steps"):
        train(tmp_path, Network(), late)
    host = Trainer(
        model := Network(),
        settings(tmp_path, max_steps=6),
        train_dataset=Stream(),
        callbacks=[TrainerSparsity(BUDGET)],
    )
    host.train()
    assert count(model) == BUDGET


def test_the_example_runs(capsys):
    runpy.run_path("examples/hugging_face_trainer.py", run_name="__main__")
    said = capsys.readouterr().out
    # A fifth of 32 * 48 tied weights and 2 layers of 4 * 48 * 48 + 3 * 48 * 96.
    assert "9523 of 47616 weights are not zero, 9523 asked for" in said
    assert "0 2 4 6 goes on [8, 10, 12, 14, 16, 18]" in said


@pytest.mark.gpu
def test_a_gpu_trains_in_half_precision_and_resumes(tmp_path):
    kind = {"use_cpu": False, "fp16": True, "save_strategy": "steps", "save_steps": 7}
    train(tmp_path, model := Network(), sparsity := TrainerSparsity(BUDGET), **kind)
    assert count(model) == BUDGET
    assert sparsity.optimizer.is_finalized
    resumed, sparsity = Network(seed=3), TrainerSparsity(BUDGET)
    train(tmp_path, resumed, sparsity, resume=tmp_path / "checkpoint-7", **kind)
    assert count(resumed) == BUDGET
    # The first steps of a scaler may be skipped, and skipped steps do not count.
    assert 13 < sparsity.optimizer.n_steps <= 20


# Several processes -------------------------------------------------------------------------------


def train_rank(rank, folder, port):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    sparsity = TrainerSparsity(BUDGET)
    host = train(f"{folder}/{rank}", model := Network(), sparsity, ddp_backend="gloo")
    # 5 batches for each process and epoch.
    assert sparsity.optimizer.n_steps == host.state.global_step == 10
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # a fork waits forever for the threads of its parent


@pytest.mark.sharded
@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_hold_the_same_support(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(train_rank, (str(tmp_path), port), nprocs=2, start_method="fork")
    first, second = (torch.load(f"{tmp_path}/{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert sum(int((t != 0).sum()) for t in first.values() if t.ndim >= 2) == BUDGET
