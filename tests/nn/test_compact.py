"""A compacted network is smaller by what a hand count says, and computes the same function."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ellzero.errors import InvalidParameterError
from ellzero.nn import HardThresholding, export, schedules
from ellzero.nn.export import channels


def seeded(model, seed=0):
    """Return the model in float64, with statistics and affine maps that are not the default."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
            for name in ("weight", "bias", "running_mean"):
                if (tensor := getattr(part, name, None)) is not None:
                    tensor.data.normal_(generator=generator)
            if hasattr(part, "running_var"):
                part.running_var.uniform_(0.5, 2, generator=generator)
    return model


def dead(layer, rows):
    layer.weight.data[rows] = 0
    return layer


def run(model, sample):
    with torch.no_grad():
        return model(**sample) if isinstance(sample, dict) else model(sample)


def compacted(model, sample, **options):
    """Return the small copy, after comparing it with the model on inputs it never saw."""
    before = copy.deepcopy(model.state_dict())
    small = export.compact(model, sample, **options)
    after = model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    reference = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        torch.testing.assert_close(run(small, sample), run(reference, sample))
        if isinstance(sample, torch.Tensor) and sample.is_floating_point():
            sample = 2 * torch.randn(sample.shape, generator=generator).to(sample)
    return small


def shapes(model):
    return {n: tuple(p.shape) for n, p in model.named_parameters() if p.ndim >= 2}


def reasons(model):
    return {c.name: c.reason for c in export.changes(model) if c.reason}


def x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# What goes ------------------------------------------------------------------------------------


def test_constants_move_into_the_next_bias_by_the_formula():
    model = seeded(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3, bias=False)))
    dead(model[0], [1, 4])
    small = compacted(model, x(5, 4))
    assert shapes(small) == {"0.weight": (4, 4), "2.weight": (3, 4)}
    moved = model[2].weight[:, [1, 4]] @ torch.tanh(model[0].bias[[1, 4]])
    torch.testing.assert_close(small[2].bias, moved)
    assert (small[0].out_features, small[2].in_features) == (4, 4)
    assert not small.training
    assert model[2].bias is None


def test_batch_norm_is_cut_and_makes_the_constant():
    model = seeded(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 5, 2), nn.BatchNorm2d(5), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(5, 2),
        )
    )  # fmt: skip
    dead(model[0], [0, 7])
    dead(model[4], [2])
    small = compacted(model, x(2, 3, 8, 8))
    assert shapes(small) == {
        "0.weight": (6, 3, 3, 3),
        "4.weight": (4, 6, 2, 2),
        "9.weight": (2, 4),
    }
    assert [small[i].num_features for i in (1, 5)] == [6, 4]
    assert small[1].running_mean.shape == (6,)
    assert reasons(small) == {}


def test_constants_behind_a_zero_padding_are_merged_into_one_unit():
    model = seeded(nn.Sequential(nn.Conv2d(2, 9, 3), nn.Sigmoid(), nn.Conv2d(9, 4, 3, padding=1)))
    dead(model[0], [1, 3, 8])
    small = compacted(model, x(2, 2, 6, 6))
    assert shapes(small) == {"0.weight": (7, 2, 3, 3), "2.weight": (4, 7, 3, 3)}
    assert reasons(small) == {
        "0": "1 row of zeros stays: a constant does not pass the zero padding of '2'"
    }
    # What is zero at the border too leaves nothing behind, nor does a padding that repeats.
    for act, mode, rows in ((nn.ReLU(), "zeros", 6), (nn.Sigmoid(), "replicate", 6)):
        second = nn.Conv2d(9, 4, 3, padding=1, padding_mode=mode)
        model = seeded(nn.Sequential(nn.Conv2d(2, 9, 3), act, second))
        dead(model[0], [1, 3, 8])
        model[0].bias.data[[1, 3, 8]] = -1.0
        assert shapes(compacted(model, x(2, 2, 6, 6)))["0.weight"][0] == rows


def test_means_with_zeros_around_are_no_constants():
    pools = [
        nn.AvgPool2d(2, padding=1),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
    ]
    kept = []
    for pool in pools:
        model = seeded(nn.Sequential(nn.Conv2d(2, 6, 1), pool, nn.Conv2d(6, 3, 1)))
        dead(model[0], [0, 1])
        kept.append(shapes(compacted(model, x(2, 2, 5, 5)))["0.weight"][0])
    assert kept == [6, 4]


def test_units_that_nobody_reads_go():
    model = seeded(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 2)))
    model[2].weight.data[:, [0, 5]] = 0
    model[3].weight.data[:, 1] = 0
    assert shapes(compacted(model, x(3, 5))) == {
        "0.weight": (4, 5),
        "2.weight": (3, 4),
        "3.weight": (2, 3),
    }


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, given):
        hidden = F.gelu(self.a(given))
        return {"b": self.b(hidden), "c": self.c(hidden)}


def test_a_unit_goes_when_no_consumer_reads_it():
    model = seeded(TwoReaders())
    model.b.weight.data[:, [0, 1, 2]] = 0
    model.c.weight.data[:, [1, 2, 3]] = 0
    small = compacted(model, x(4, 5))
    assert shapes(small) == {"a.weight": (4, 5), "b.weight": (2, 4), "c.weight": (3, 4)}
    # The columns that stay are those of units 0, 3, 4 and 5.
    torch.testing.assert_close(small.b.weight, model.b.weight[:, [0, 3, 4, 5]])


def test_what_a_round_uncovers_goes_in_the_next():
    # Row 0 of the third layer is zero; its row was all that read unit 3 of the second.
    model = seeded(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))))
    model[1].weight.data[:, 0] = 0
    model[2].weight.data[1:, 3] = 0
    dead(model[2], [0])
    model[1].weight.data[:3, 2] = 0
    assert shapes(compacted(model, x(3, 4))) == {
        "0.weight": (2, 4),  # unit 0 was read by nobody, unit 2 by unit 3 of the next alone
        "1.weight": (3, 2),
        "2.weight": (3, 3),
        "3.weight": (4, 3),
    }


# Graphs ---------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.first, self.second = nn.Conv2d(6, 5, 3), nn.Conv2d(5, 6, 3)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(6, 2)

    def forward(self, given):
        trunk = self.act(self.norm(self.stem(given)))
        branch = self.second(self.act(self.first(trunk)))
        out = self.act(F.max_pool2d(trunk, 5, stride=1) + branch)
        return self.head(out.mean((2, 3)))


def test_with_a_sum_a_channel_goes_when_it_is_dead_on_every_branch():
    model = seeded(Residual())
    dead(model.stem, [0, 1, 2])
    dead(model.first, [4])
    dead(model.second, [1, 2, 3])
    small = compacted(model, x(2, 3, 9, 9))
    assert shapes(small) == {
        "stem.weight": (4, 3, 3, 3),  # 1 and 2 are dead on both
        "first.weight": (4, 4, 3, 3),
        "second.weight": (4, 4, 3, 3),
        "head.weight": (2, 4),
    }
    assert reasons(small) == {
        "stem": "1 row of zeros stays: alive in another branch, or the last of its layer",
        "second": "1 row of zeros stays: alive in another branch, or the last of its layer",
    }


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 4, 1), nn.Conv1d(3, 5, 1)
        self.c, self.d = nn.Conv1d(9, 6, 1), nn.Linear(24, 2)

    def forward(self, given, scale=None, times=2):
        both = torch.cat([torch.relu(self.a(given)), self.b(given).tanh()], dim=1)
        out = self.c(both) * times
        if scale is not None:
            out = out * scale
        return self.d(out.view(out.size(0), -1))


def test_concatenation_views_and_defaults():
    model = seeded(Branches())
    dead(model.a, [0])
    dead(model.b, [1, 4])
    dead(model.c, [5])
    small = compacted(model, x(2, 3, 4))
    assert shapes(small) == {
        "a.weight": (3, 3, 1),
        "b.weight": (3, 3, 1),
        "c.weight": (5, 6, 1),
        "d.weight": (2, 20),
    }
    small = export.compact(model, {"given": x(2, 3, 4), "scale": x(2, 1, 1), "times": 3})
    assert shapes(small)["c.weight"] == (6, 6, 1)
    torch.testing.assert_close(
        small(x(2, 3, 4), x(2, 1, 1), 3), model.eval()(x(2, 3, 4), x(2, 1, 1), 3)
    )


def test_depthwise_and_grouped_convolutions():
    model = seeded(
        nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 3, 1))
    )
    dead(model[0], [0])
    dead(model[1], [2, 3, 4])  # both outputs of channel 1, one of two of channel 2
    small = compacted(model, x(2, 2, 5, 5))
    assert shapes(small) == {
        "0.weight": (4, 2, 1, 1),
        "1.weight": (8, 1, 3, 3),
        "2.weight": (3, 8, 1, 1),
    }
    assert small[1].groups == 4
    model = seeded(
        nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 9, 3, groups=3), nn.Conv2d(9, 3, 1))
    )
    dead(model[1], [0, 3, 4, 5])  # a third of the first group, all of the second
    small = compacted(model, x(2, 2, 5, 5))
    assert shapes(small) == {
        "0.weight": (4, 2, 1, 1),
        "1.weight": (6, 2, 3, 3),
        "2.weight": (3, 6, 1, 1),
    }
    assert small[1].groups == 2
    assert reasons(small) == {
        "1": "1 row of zeros stays: alive in another branch, or the last of its layer"
    }


def test_a_layer_that_is_called_twice_is_cut_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, given):
            return self.c(torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(given)))))))

    model = seeded(Twice())
    dead(model.a, [0, 1])
    dead(model.b, [1, 2])
    for layer in (model.a, model.b):
        layer.bias.data[[0, 1, 2]] = -1.0  # zero behind every activation
    assert shapes(compacted(model, x(3, 3))) == {
        "a.weight": (3, 3),
        "b.weight": (3, 3),
        "c.weight": (2, 3),
    }


def test_sequences_permutations_and_other_layouts():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix = nn.Conv2d(3, 6, 2, stride=2), nn.Linear(6, 5)
            self.act, self.head = nn.PReLU(6), nn.Linear(5, 2)

        def forward(self, given):
            tokens = self.act(self.embed(given)).flatten(2).transpose(1, 2)
            return self.head(F.softplus(self.mix(tokens)).mean(1))

    model = seeded(Mixer())
    dead(model.embed, [5])
    dead(model.mix, [0, 1])
    small = compacted(model, x(2, 3, 4, 4))
    assert shapes(small) == {
        "embed.weight": (5, 3, 2, 2),
        "mix.weight": (3, 5),
        "head.weight": (2, 3),
    }
    assert small.act.weight.shape == (5,)


def test_the_feed_forward_part_of_torchs_transformer_layers():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 6)
            layer = nn.TransformerEncoderLayer(6, 2, 20, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, ids):
            return self.encoder(self.embedding(ids))

    model = seeded(Encoder())
    dead(model.encoder.layers[1].linear1, slice(0, 15))
    ids = torch.arange(10).reshape(2, 5) % 7
    small = compacted(model, {"ids": ids})
    assert shapes(small)["encoder.layers.1.linear1.weight"] == (5, 6)
    assert shapes(small)["encoder.layers.0.linear1.weight"] == (20, 6)
    assert run(small, {"ids": ids}).shape == (2, 5, 6)


# What stays, and why --------------------------------------------------------------------------


def test_layer_norm_outputs_and_fixed_sizes_are_not_cut_through():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(16, 6)
            self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, given):
            return self.head(self.norm(self.fc(self.conv(given).view(-1, 16))))

    model = seeded(Fixed())
    for layer in (model.conv, model.fc, model.head):
        dead(layer, [0, 2])
    small = compacted(model, x(2, 1, 4, 4))
    assert shapes(small) == shapes(model)
    assert reasons(small) == {
        "conv": "2 rows of zeros stay: read by 'view' to other sizes than (samples, -1)",
        "fc": "2 rows of zeros stay: read by LayerNorm 'norm'",
        "head": "2 rows of zeros stay: an output of the model",
    }


class Moody(nn.Module):
    """Its graph depends on its input."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 5))
        self.head, self.spare = nn.Linear(5, 2), nn.Linear(2, 2)

    def forward(self, given):
        hidden = self.body(given)
        return self.spare(self.head(hidden)) if hidden.sum() > 1e6 else self.head(hidden)


def test_of_a_graph_that_cannot_be_traced_the_parts_are_made_smaller():
    model = seeded(Moody())
    dead(model.body[0], [0])
    dead(model.body[2], [1, 2])
    dead(model.body[3], [3])
    small = compacted(model, x(3, 4))
    assert shapes(small)["body.0.weight"] == (5, 4)
    assert shapes(small)["body.3.weight"] == (5, 4)
    why = (
        "Moody cannot be traced (symbolically traced variables cannot be used as inputs to "
        "control flow)"
    )
    assert reasons(small) == {
        "body.3": "1 row of zeros stays: an output of the model",
        "head": why,
        "spare": why,
    }


class Attention(nn.Module):
    """Cannot be traced, takes keywords, and returns several things."""

    def __init__(self):
        super().__init__()
        self.value = nn.Linear(6, 6)

    def forward(self, hidden, places=None, **options):
        table, _ = places
        if hidden.sum() > 1e9:
            return hidden, None
        return self.value(hidden) + table, options.get("scale")


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm = Attention(), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, hidden, **options):
        seen, _ = self.attention(hidden, **options)
        seen = self.norm(seen + hidden)
        return seen + self.down(F.gelu(self.up(seen)))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(6, 2)

    def forward(self, hidden):
        places = (torch.ones_like(hidden), "unused")
        for layer in self.layers:
            hidden = layer(hidden, places=places, scale=2)
        return {"logits": self.head(hidden.mean(1))}


def test_what_cannot_be_traced_is_called_whole_by_the_graph_around_it():
    model = seeded(Stack())
    for layer in model.layers:
        dead(layer.up, [0, 1, 7])
        dead(layer.attention.value, [3])
    small = compacted(model, x(2, 3, 6))
    assert [tuple(layer.up.weight.shape) for layer in small.layers] == [(5, 6)] * 2
    assert [tuple(layer.down.weight.shape) for layer in small.layers] == [(6, 5)] * 2
    why = (
        "Attention cannot be traced (symbolically traced variables cannot be used as inputs to "
        "control flow)"
    )
    assert reasons(small) == {f"layers.{i}.attention.value": why for i in (0, 1)}


def test_a_layer_that_the_sample_does_not_reach_is_said():
    class Choice(nn.Module):
        def __init__(self):
            super().__init__()
            self.ways = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(2)])

        def forward(self, given):
            return self.ways[int(given.sum() > 0)](given)

    small = compacted(Choice(), torch.ones(1, 2))
    assert reasons(small)["ways.0.0"] == "`sample` does not reach it"


def test_tied_and_unknown_layers_stay():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Bilinear(4, 4, 3)
            self.b.weight = self.a.weight

        def forward(self, given):
            return self.c(self.a(given), self.b(given))

    model = seeded(Tied())
    dead(model.a, [0])
    small = compacted(model, x(2, 4))
    assert shapes(small) == shapes(model)
    assert small.a.weight is small.b.weight
    words = "it shares a parameter with another layer, so it stays"
    assert reasons(small) == {"a": words, "b": words}
    hooked = seeded(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    hooked[0].register_forward_hook(lambda module, given, out: out + 1)
    dead(hooked[0], [0])
    assert reasons(compacted(hooked, x(2, 3))) == {"0": "it has hooks, so it stays"}
    alone = seeded(nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Conv1d(3, 2, 1)))
    small = compacted(alone, x(2, 5))
    assert reasons(small)["0"] == "it is called without a batch, so it stays"
    other = seeded(nn.Sequential(nn.ConvTranspose1d(2, 3, 1), nn.ReLU()))
    other[0].weight.data[:, 1] = 0
    assert reasons(compacted(other, x(1, 2, 5))) == {
        "0": "rows or columns of zeros stay: layers of class ConvTranspose1d do"
    }


def test_a_function_that_would_change_stays_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, given):
            return self.b(torch.relu(self.a(given))) * self.a.out_features

    model = seeded(Counting())
    dead(model.a, [0, 1])
    small = compacted(model, x(2, 4))
    assert shapes(small) == shapes(model)
    assert small.a.out_features == 6
    words = "the smaller model gave other outputs, so it stays as it was"
    assert reasons(small) == {"a": words, "b": words}


def test_each_layer_keeps_one_unit():
    model = seeded(nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Conv1d(3, 2, 1)))
    dead(model[0], slice(None))
    small = compacted(model, x(2, 2, 3), select_inputs=False)
    assert shapes(small) == {"0.weight": (1, 2, 1), "2.weight": (2, 1, 1)}


# Inputs ---------------------------------------------------------------------------------------


def test_layers_that_read_a_part_of_the_input_get_that_part():
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)))
    model[1].weight.data[:, [0, 3, 4]] = 0
    small = compacted(model, x(3, 2, 3))
    assert small[1][0].index.tolist() == [1, 2, 5]
    assert shapes(small) == {"1.1.weight": (5, 3), "3.weight": (2, 5)}
    (first, _) = export.changes(small)
    assert (first.name, first.before, first.after) == ("1", (5, 6), (5, 3))
    small = compacted(model, x(3, 2, 3), select_inputs=False)
    assert shapes(small)["1.weight"] == (5, 6)
    model = seeded(nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.ReLU()))
    model[0].weight.data[:, [1, 2]] = 0
    assert shapes(compacted(model, x(2, 4, 5, 5))) == {"0.1.weight": (3, 2, 3, 3)}


# The report -----------------------------------------------------------------------------------


def small_example():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    dead(model[0], [1])
    dead(model[3], [2])
    return export.compact(model, torch.randn(2, 1, 4, 4))


def test_the_table_counts_parameters_and_products():
    # Two samples, 2 x 2 places, 9 products for each of 4 filters; 2 samples of 3 x 16.
    assert export.changes_table(small_example()).splitlines() == [
        "layer   weight      now  parameters  now  MACs  now",
        "0      4x1x3x3  3x1x3x3          40   30   288  216",
        "1            4        3           8    6     0    0",
        "3         3x16     3x12          51   39    96   72",
        "all                              99   75   384  288",
        "3: 1 row of zeros stays: an output of the model",
    ]


def test_the_copy_is_a_plain_module():
    small = small_example()
    again = pickle.loads(pickle.dumps(small))
    assert export.changes(again) == export.changes(small) == export.changes(copy.deepcopy(small))
    given = torch.randn(2, 1, 4, 4)
    assert torch.equal(again(given), small(given))
    small.train()(given).sum().backward()
    assert small[0].weight.grad.shape == (3, 1, 3, 3)
    frozen = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).requires_grad_(False)
    dead(frozen[0], [0])
    assert not any(p.requires_grad for p in export.compact(frozen, torch.ones(1, 2)).parameters())


def test_wrong_arguments_are_refused():
    model = nn.Linear(2, 3)
    with pytest.raises(InvalidParameterError) as error:
        export.compact(model, 3)
    assert str(error.value) == (
        "`sample` must be a tensor, a tuple of inputs or a mapping of keywords, got int.\n"
        "hint: Give what the model will be called with."
    )
    with pytest.raises(InvalidParameterError, match="a mapping of keywords, got an empty one"):
        export.compact(model, ())
    with pytest.raises(InvalidParameterError) as error:
        export.compact(model, torch.ones(1, 5))
    assert str(error.value) == (
        "`model` cannot be called with `sample`: mat1 and mat2 shapes cannot be multiplied (1x5 "
        "and 2x3).\nhint: Give a tensor, a tuple of inputs or a mapping of keywords that the "
        "model takes."
    )
    with pytest.raises(InvalidParameterError) as error:
        export.changes(model)
    assert str(error.value) == (
        "`model` must be a model that `export.compact` returned, got Linear.\n"
        "hint: Call `export.compact(model, sample)` first."
    )


# Random networks ------------------------------------------------------------------------------


@st.composite
def networks(draw):
    """A chain of convolutions with random widths, norms, activations, pads and dead rows."""
    seed = draw(st.integers(0, 10_000))
    torch.manual_seed(seed)
    layers, width = [], draw(st.integers(1, 3))
    first = width
    for _ in range(draw(st.integers(1, 4))):
        new = draw(st.integers(1, 6))
        kind = draw(st.sampled_from(["plain", "plain", "depthwise"]))
        groups = 1
        if kind == "depthwise":
            new, groups = width * draw(st.integers(1, 2)), width
        pad = draw(st.sampled_from([0, 1]))
        bias = draw(st.booleans())
        conv = nn.Conv1d(width, new, 3, padding=1 + pad, groups=groups, bias=bias)
        conv.weight.data[torch.rand(new) < 0.4] = 0
        conv.weight.data[:, torch.rand(conv.weight.shape[1]) < 0.2] = 0
        layers.append(conv)
        if draw(st.booleans()):
            layers.append(nn.BatchNorm1d(new))
        act = draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity]))
        layers.append(act())
        if draw(st.booleans()):
            layers.append(draw(st.sampled_from([nn.MaxPool1d(2), nn.AvgPool1d(3, 1, 1)])))
        width = new
    body = nn.Sequential(*layers)
    given = torch.randn(3, first, 12, dtype=torch.float64)
    with torch.no_grad():
        out = body.double().eval()(given)
    head = nn.Linear(out[0].numel(), 2)
    head.weight.data[:, torch.rand(head.in_features) < 0.2] = 0
    return seeded(nn.Sequential(*layers, nn.Flatten(), head), seed), given


@given(networks())
@settings(max_examples=60, deadline=None)
def test_random_networks_keep_their_function(case):
    model, given = case
    small = compacted(model, given)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
    # A bias may be new; all else only shrinks.
    new = sum(m.bias is not None and n.bias is None for m, n in _pairs(small, model))
    assert sizes[1] <= sizes[0] + 8 * new
    again = export.compact(small, given)
    assert shapes(again) == shapes(small)


def _pairs(small, model):
    kinds = (nn.Linear, nn.Conv1d)
    return zip(
        [m for m in small.modules() if isinstance(m, kinds)],
        [m for m in model.modules() if isinstance(m, kinds)],
        strict=True,
    )


# From budget to export ------------------------------------------------------------------------


def digits(n=64):
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(n, 1, 8, 8, generator=generator)
    return given, (given.mean((1, 2, 3)) > 0).long()


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16),
                               nn.ReLU(), nn.Linear(16, 2)), 13),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                               nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
                               nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 2)), 7),
    ],
    ids=["perceptron", "convolutions"],
)  # fmt: skip
def test_a_budget_of_rows_ends_as_that_many_units(make, kept):
    torch.manual_seed(0)
    model = make()
    optimizer = HardThresholding(
        torch.optim.AdamW(model.parameters(), lr=0.01),
        model,
        n_nonzero=kept,
        structure="rows",
        schedule=schedules.ramp(0.0, 0.5, 20),
    )
    given, wanted = digits()
    for _ in range(20):
        F.cross_entropy(model(given), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.finalize()
    assert optimizer.n_units == kept
    small = export.compact(model, given)
    model.eval()
    torch.testing.assert_close(small(given), model(given), rtol=1e-4, atol=1e-5)
    layers = [m for m in small.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert sum(m.weight.shape[0] for m in layers[:-1]) == kept
    assert layers[-1].weight.shape[0] == 2


def test_every_kind_of_layer_that_is_followed_is_torchs_own():
    # A list that names something else would follow it by guess.
    for kind in (*channels._ELEMENTWISE, *channels._POOLS, *channels.BY_CHANNEL):
        assert kind.__module__.startswith("torch.nn.modules")
