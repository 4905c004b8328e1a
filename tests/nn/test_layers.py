import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ellzero.errors import InvalidParameterError
from ellzero.nn import export, summary


def thin_(model, density=0.3):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.mul_(torch.rand(p.shape) < density)
    return model


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.rnn = nn.LSTM(8, 6, batch_first=True)
        self.conv = nn.Conv1d(6, 4, 3, groups=2, padding=1)
        self.up = nn.ConvTranspose1d(4, 3, 2, stride=2)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 10)

    def forward(self, tokens):
        x, _ = self.rnn(self.encoder(self.embed(tokens)))
        return self.head(self.norm(self.up(self.conv(x.transpose(1, 2)))).mean(2))


def rows_of(found):
    return {row.name: row for row in found.layers}


def test_multiplications_are_those_of_the_formulas():
    model = thin_(Network())
    rows = rows_of(summary(model, torch.zeros(2, 7, dtype=torch.long)))
    # Calls of each weight: 2 samples of 7 tokens; the transposed convolution reads 7 places too.
    calls = {"embed.weight": 0, "head.weight": 2}
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            n = calls.get(name, 14)
            assert rows[name].dense_macs == n * p.numel(), name
            assert rows[name].sparse_macs == n * int((p != 0).sum()), name
    # Scores and values of attention, two heads of four: 2 * 2 * 7 * 7 * (4 + 4).
    assert summary(model, torch.zeros(2, 7, dtype=torch.long)).other_macs == 1568


def test_dense_multiplications_agree_with_the_counter_of_torch():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.ConvTranspose2d(8, 5, 3),
        nn.Flatten(),
        nn.Linear(5 * 8 * 8, 10),
    )
    x = torch.randn(3, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert 2 * summary(model, x).total.dense_macs == counter.get_total_flops()


def test_rows_columns_and_bytes_are_counted_from_the_weights(tmp_path):
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Conv2d(4, 6, 3))
    with torch.no_grad():
        model[0].weight[5:9] = 0
        model[0].weight[:, 3] = 0
        model[2].weight[0] = 0
        model[2].weight[:, 1:3] = 0
    found = summary(model)
    rows = rows_of(found)
    first, last = rows["0.weight"], rows["2.weight"]
    assert (first.n_dead_rows, first.n_dead_columns, first.n_nonzero) == (4, 1, 16 * 29)
    assert (last.n_dead_rows, last.n_dead_columns, last.n_nonzero) == (1, 2, 5 * 2 * 9)
    assert (first.kind, last.shape, last.dense_macs) == ("Linear", (6, 4, 3, 3), None)
    assert found.n_other == 26
    assert found.total.dense_bytes == 4 * (600 + 216)
    # A file has one tensor's bytes and a description.
    sizes = [export.save({"w": w}, tmp_path / "w") for w in (model[0].weight, torch.zeros(0))]
    assert 0 <= sizes[0] - sizes[1] - first.compressed_bytes < 300


def test_tied_weights_are_one_row_with_the_calls_of_both():
    model = nn.ModuleDict({"embed": nn.Embedding(20, 4), "head": nn.Linear(4, 20, bias=False)})
    model["head"].weight = model["embed"].weight
    model.forward = lambda x: model["head"](model["embed"](x))
    (row,) = summary(model, torch.arange(5)).layers
    assert (row.name, row.n_entries, row.dense_macs) == ("embed.weight", 80, 400)


def test_the_model_and_the_settings_of_torch_are_left_alone():
    model = Network().train()
    model.norm.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    summary(model, torch.zeros(2, 7, dtype=torch.long))
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.backends.mkldnn.enabled == torch.backends.mkldnn.is_available()
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_table_and_the_plain_values_say_the_same():
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 1, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()[:3] = 1.0
    found = summary(model, (torch.ones(2, 40),))
    assert str(found).splitlines() == [
        "weight    layer   shape  nonzero  density  dead rows  columns   MACs  sparse  KiB  file",
        "0.weight  Linear  30x40      120   10.0 %         27        0  2,400     240  4.7   0.0",
        "1.weight  Linear   1x30       30  100.0 %          0        0     60      60  0.1   0.1",
        "total             1,230      150   12.2 %         27        0  2,460     300  4.8   0.1",
        "30 entries of other parameters are not counted.",
    ]
    values = json.loads(json.dumps(found.to_dict()))
    assert values["total"]["sparse_macs"] == 300
    assert values["layers"][0] == {
        "name": "0.weight",
        "kind": "Linear",
        "shape": [30, 40],
        "n_nonzero": 120,
        "n_entries": 1200,
        "density": 0.1,
        "n_dead_rows": 27,
        "n_dead_columns": 0,
        "dense_macs": 2400,
        "sparse_macs": 240,
        "dense_bytes": 4800,
        "compressed_bytes": found.layers[0].compressed_bytes,
    }
    assert "MACs" not in str(summary(model))


def test_named_inputs_and_products_without_a_weight():
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4))

        def forward(self, left, right):
            return F.linear(left, self.weight) @ right.T

    found = summary(Scores(), {"left": torch.ones(3, 4), "right": torch.ones(5, 4)})
    assert (found.layers[0].dense_macs, found.layers[0].sparse_macs) == (48, 12)
    assert found.other_macs == 60
    assert str(found).endswith("nor 60 MACs without a weight.")


def test_a_sample_of_another_type_is_refused():
    with pytest.raises(InvalidParameterError) as caught:
        summary(nn.Linear(2, 2), 3)
    assert str(caught.value) == (
        "`sample` must be a tensor, a tuple of inputs or a mapping of keywords, got int.\n"
        "hint: Give what the model will be called with."
    )
