"""Averages of weights against torch's own and formulas; the model gets its own weights back; states go on to the same bits."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from seglib.data.dataset import open_data
from seglib.data.loader import build_loader
from seglib.errors import InputError
from seglib.models import build_model
from seglib.training.averaging import build_averages, estimate_batch_norm
from seglib.training.optim import build_scheduler

EPOCHS, STEPS = 4, 3


class Tiny(nn.Module):
    """Convolution, batch norm, a buffer, and dropout in front of a second batch norm."""

    def __init__(self, p=0.0):
        super().__init__()
        self.register_buffer("mean", torch.tensor(127.0))
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout2d(p),
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 2, 1),
        )
        self.unused = nn.BatchNorm2d(2)

    def forward(self, images):
        return self.layers((images.float() - self.mean) / 64)


@pytest.fixture(scope="module")
def loader(small_data):
    train_set, _ = open_data(str(small_data), "train.json", "val.json", split="given", folds=4, fold=0, seed=1,
                             paint_order="class_id", background="class", image_size=64, cache=False)  # fmt: skip
    return build_loader(train_set, 8, shuffle=True, augmentation="flips", seed=7, num_workers=0)


def make(averaging, epochs=EPOCHS, warmup=0.0, model=None, **how):
    torch.manual_seed(0)
    model = model or Tiny()
    return model, build_averages(averaging, model, epochs, STEPS, warmup, **how)


def change(model, step):
    """What a training step does: other weights, other statistics, one more batch seen."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def go(model, averages, steps):
    """Make steps; return the weights after each."""
    seen = []
    for step in steps:
        change(model, step)
        averages.step()
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return seen


def read(model, averages, name, loader):
    with averages.applied(name, loader, 8, "float32"):
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@pytest.mark.parametrize("decay", [None, 0.4])
def test_ema_is_the_loop_of_its_formula(loader, decay):
    model, averages = make({"ema": {} if decay is None else {"decay": decay}})
    seen = go(model, averages, range(12))
    averaged = read(model, averages, "ema", loader)
    for name, value in averaged.items():
        expected = seen[0][name].double().numpy()
        for n, weights in enumerate(seen[1:], 2):
            d = min(decay or 0.999, n / (n + 9))
            expected = d * expected + (1 - d) * weights[name].double().numpy()
        if not value.is_floating_point():
            expected = seen[-1][name].numpy()  # counters are copied
        np.testing.assert_allclose(value.numpy(), expected, rtol=2e-6)


def test_swa_is_torchs_over_the_last_weights_of_its_epochs(loader):
    model, averages = make({"swa": {"start": 0.25}})
    reference = None
    for epoch in range(1, EPOCHS + 1):
        go(model, averages, range(epoch * STEPS, (epoch + 1) * STEPS))
        if epoch > 1:
            reference = reference or AveragedModel(model, use_buffers=True)
            reference.update_parameters(model)
    loader.batch_sampler.epoch = 0
    update_bn(loader, reference.module)
    loader.batch_sampler.epoch = 4
    averaged = read(model, averages, "swa", loader)
    for name, value in reference.module.state_dict().items():
        if not name.startswith("unused"):
            torch.testing.assert_close(averaged[name], value, rtol=1e-6, atol=1e-6)
    assert loader.batch_sampler.epoch == 4


def test_snapshots_are_taken_when_the_cycles_end(loader):
    """T_0 of one epoch, then two: after steps 3 and 9 of 12."""
    options = {"T_0": 1.0, "T_mult": 2}
    model, averages = make({"snapshot": {}}, options=options)
    seen = go(model, averages, range(EPOCHS * STEPS))
    averaged = read(model, averages, "snapshot", loader)
    for name in ("layers.0.weight", "layers.5.bias", "mean"):
        torch.testing.assert_close(averaged[name], (seen[2][name] + seen[8][name]) / 2)


@pytest.mark.parametrize("per", ["iteration", "epoch"])
@pytest.mark.parametrize("options", [{}, {"T_0": 1.5}, {"T_0": 1.25, "T_mult": 1}, {"T_mult": 1}])
@pytest.mark.parametrize("warmup", [0.0, 1.0, 0.5])
def test_snapshots_are_taken_where_the_learning_rate_is_about_to_jump_up(per, options, warmup):
    epochs, steps = 6, 10
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_scheduler("cosine_restarts", optimizer, epochs, steps, warmup, per=per, options=options)
    rates = [schedule.lr_lambdas[0](iteration) for iteration in range(epochs * steps)]
    jumps = [i for i in range(1, epochs * steps) if rates[i] > rates[i - 1] and i > warmup * steps]
    model = Tiny()
    averages = build_averages({"snapshot": {}}, model, epochs, steps, warmup, per=per, options=options)
    for _ in range(epochs * steps):
        averages.step()
    taken = averages.state_dict()["taken"]["snapshot"]
    assert [step for step in taken if step < epochs * steps] == jumps
    if "T_0" not in options:  # the last cycle ends with the training
        assert taken[-1] == epochs * steps


@pytest.mark.parametrize("averaging", [{"ema": {}}, {"swa": {"start": 0.0}}])
@pytest.mark.parametrize("failing", [False, True])
def test_the_model_has_its_own_bits_again_even_after_an_error(loader, averaging, failing):
    model, averages = make(averaging)
    model = model.to(memory_format=torch.channels_last).train()
    (own,) = go(model, averages, range(EPOCHS * STEPS))[-1:]
    strides = {name: tensor.stride() for name, tensor in model.state_dict().items()}
    (name,) = averaging
    try:
        with averages.applied(name, loader, 8, "float32"):
            assert not torch.equal(model.state_dict()["layers.0.weight"], own["layers.0.weight"])
            model.layers[0].weight.data.mul_(2)
            if failing:
                raise RuntimeError
    except RuntimeError:
        assert failing
    assert_same(model.state_dict(), own)
    assert {name: tensor.stride() for name, tensor in model.state_dict().items()} == strides
    assert all(module.training for module in model.modules())
    assert model.layers[1].momentum == 0.1


def test_an_error_while_statistics_are_estimated_leaves_the_model_as_it_was(loader, monkeypatch):
    model, averages = make({"swa": {"start": 0.0}})
    (own,) = go(model, averages, range(EPOCHS * STEPS))[-1:]
    loader.batch_sampler.epoch = 3
    monkeypatch.setattr(loader.dataset.subset.__class__, "read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), averages.applied("swa", loader, 8, "float32"):
        pass
    assert_same(model.state_dict(), own)
    assert (model.training, model.layers[1].momentum, loader.batch_sampler.epoch) == (True, 0.1, 3)


@pytest.mark.parametrize("when", [1, 4, 10, 11])
def test_a_state_from_within_an_epoch_goes_on_to_the_same_bits(loader, when):
    averaging = {"ema": {"decay": 0.7}, "swa": {"start": 0.5}}
    model, averages = make(averaging)
    go(model, averages, range(12))
    half, first = make(averaging)
    go(half, first, range(when))
    file = io.BytesIO()
    torch.save({"model": half.state_dict(), "averages": first.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed, second = make(averaging)
    resumed.load_state_dict(state["model"])
    second.load_state_dict(state["averages"])
    go(resumed, second, range(when, 12))
    for name in averaging:
        assert_same(read(model, averages, name, loader), read(resumed, second, name, loader))


def test_a_state_of_a_shorter_training_is_refused_where_other_weights_were_averaged():
    _, averages = make({"swa": {}})
    go(*make({"swa": {}})[:1], averages, range(12))
    _, longer = make({"swa": {}}, epochs=8)
    with pytest.raises(
        InputError, match=r"averaging: required .*'swa': \[\].*the checkpoint has .*'swa': \[9, 12\].*length"
    ):
        longer.load_state_dict(averages.state_dict())


def test_the_ema_is_scored_after_each_epoch_and_the_others_once():
    averages = make({"ema": {}, "swa": {}})[1]
    assert averages.ready(last=False) == []
    for _ in range(3 * STEPS):
        averages.step()
    assert averages.ready(last=False) == ["ema"]
    assert averages.ready(last=True) == ["ema"]  # stopped early, with one member
    for _ in range(STEPS):
        averages.step()
    assert averages.ready(last=True) == ["ema", "swa"]
    assert averages.ready(last=False) == ["ema"]


def test_swa_takes_the_last_two_epochs_at_least_and_says_when_there_are_none(capsys):
    averages = make({"swa": {"start": 0.9}})[1]
    for _ in range(EPOCHS * STEPS):
        averages.step()
    assert averages.state_dict()["taken"] == {"swa": [9, 12]}
    assert not capsys.readouterr().out
    make({"snapshot": {}}, options={"T_0": 3})
    assert "averaging.snapshot: 1 of two or more times" in capsys.readouterr().out


def test_swa_and_snapshot_exclude_each_other():
    with pytest.raises(InputError, match="swa holds the learning rate, and snapshot needs its cycles"):
        make({"swa": {}, "snapshot": {}})


def test_without_averages_nothing_is_kept():
    model, averages = make({})
    go(model, averages, range(3))
    assert averages.ready(last=True) == []
    assert averages.state_dict() == {"steps": 3, "taken": {}, "means": {}}


def test_averages_keep_channels_last():
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    model, averages = make({"ema": {}}, model=model)
    averages.step()
    before = averages.state_dict()
    assert before["means"]["ema"]["weight"].is_contiguous(memory_format=torch.channels_last)
    averages.load_state_dict(before)
    assert averages.state_dict()["means"]["ema"]["weight"].is_contiguous(memory_format=torch.channels_last)


def test_batch_norm_is_estimated_as_torch_does_without_dropout(loader):
    ours, theirs = (Tiny(p).train() for p in (0.5, 0.0))
    theirs.load_state_dict(ours.state_dict())
    before = ours.unused.running_mean.add_(3).clone()
    update_bn(loader, theirs)
    estimate_batch_norm(ours, loader, 8, "float32")
    for layer in (1, 4):
        assert torch.equal(ours.layers[layer].running_mean, theirs.layers[layer].running_mean)
        assert torch.equal(ours.layers[layer].running_var, theirs.layers[layer].running_var)
    assert torch.equal(ours.unused.running_mean, before)  # saw no batch
    assert ours.layers[2].training


def test_a_frozen_batch_norm_keeps_its_statistics(loader):
    model = Tiny()
    model.layers[1].requires_grad_(False)
    estimate_batch_norm(model, loader, 8, "float32")
    assert torch.equal(model.layers[1].running_mean, torch.zeros(4))
    assert not torch.equal(model.layers[4].running_mean, torch.zeros(4))


def test_a_model_without_batch_norm_is_not_run():
    def batches():
        raise AssertionError
        yield

    estimate_batch_norm(nn.Conv2d(3, 2, 1), batches(), 8, "float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_statistics_are_close_with_small_micro_batches_and_with_low_precision(loader, precision):
    torch.manual_seed(0)
    whole, parts = Tiny(), Tiny()
    parts.load_state_dict(whole.state_dict())
    estimate_batch_norm(whole, loader, 8, "float32")
    estimate_batch_norm(parts, loader, 3, precision)
    for layer in (1, 4):
        torch.testing.assert_close(
            parts.layers[layer].running_mean, whole.layers[layer].running_mean, rtol=0.02, atol=0.02
        )
        torch.testing.assert_close(
            parts.layers[layer].running_var, whole.layers[layer].running_var, rtol=0.1, atol=0.02
        )


def test_a_network_with_auxiliary_heads_and_dropout_can_be_estimated(loader):
    model = build_model("PSPNet", "tu-test_resnet", 2)
    estimate_batch_norm(model, loader, 1, "float32")  # two images at a time: its pooled batch norm refuses one
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def swa_rates(swa, name="cosine", lrs=(0.4, 0.04)):
    parameters = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    optimizer = torch.optim.SGD(parameters, lr=lrs[0])
    schedule = build_scheduler(name, optimizer, 8, 5, 1.0, averaging={"swa": swa})
    rates = []
    for step in range(40):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
        if step % 5 == 4:
            schedule.end_epoch(0.0)
    return np.array(rates)


@pytest.mark.parametrize(("swa", "begin", "rate"), [({}, 30, 0.2), ({"lr": 0.1, "start": 0.5}, 20, 0.1)])
def test_swa_holds_its_own_learning_rate_from_its_start_on(swa, begin, rate):
    rates = swa_rates(swa)
    warm = [0.4 * (step + 1) / 6 for step in range(5)]
    curve = [0.2 * (1 + math.cos(math.pi * step / 35)) for step in range(begin - 5)]
    np.testing.assert_allclose(rates[:, 0], [*warm, *curve, *[rate] * (40 - begin)])
    np.testing.assert_allclose(rates[:, 1], rates[:, 0] / 10)


def test_swa_s_learning_rate_does_not_fall_with_a_plateau():
    rates = swa_rates({}, "plateau")
    assert rates[25:30, 0].max() < 0.2
    np.testing.assert_allclose(rates[30:, 0], 0.2)
