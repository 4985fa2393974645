"""The training loop: learns, selects, accumulates like the whole batch, fails loudly."""

import copy
import random

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from seglib.data.loader import build_loader
from seglib.errors import InputError
from seglib.evaluation.metrics import compute_metrics, load_confusion
from seglib.models import build_model
from seglib.training.checkpoint import hash_weights, load_checkpoint
from seglib.training.device import choose_precision, seed_everything
from seglib.training.losses import build_loss
from seglib.training.optim import build_optimizer, build_scheduler
from seglib.training.scoring import evaluate, require_falling_loss
from seglib.training.step import EpochLoss, GradientStep

CPU = torch.device("cpu")


def one_pass(step, loss, loader, epoch, mix=None):
    """An epoch of plain steps; returns its mean loss."""
    step.set_mode(epoch)
    loader.batch_sampler.epoch, losses = epoch, EpochLoss(CPU)
    for number, (images, masks) in enumerate(loader, 1):
        images, targets = mix(images, masks, epoch, number) if mix else (images, masks)
        value = step.backward(
            lambda images, targets: loss(step.model(images), targets), images, targets, loader.batch_sampler.batch_size
        )
        step.update()
        losses.add(number, *value)
    return losses.take_mean(loader, epoch, [])


def weights_hash(run_dir, name="last.pt"):
    return hash_weights(load_checkpoint(run_dir / name, required=("model",))["model"])


def test_the_same_seed_gives_the_same_bits_with_any_number_of_workers_and_another_seed_does_not(
    subsets, train_small, tmp_path
):
    for name, options in {"a": {}, "b": {"workers": 2}, "c": {"seed": 6}}.items():
        train_small(subsets, tmp_path / name, epochs=1, **options)
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b") != weights_hash(tmp_path / "c")


def test_where_the_seed_is_set_makes_no_difference(subsets):
    """Samples, batches and steps have streams of their own: nothing before the model draws from what it is made from."""
    hashes = set()
    for early in (True, False):
        random.seed(9), np.random.seed(9), torch.manual_seed(9)  # noqa: NPY002
        if early:
            seed_everything(5, deterministic=True)
        mixing = {"mosaic": 1.0, "copy_paste": 1.0}
        loader = build_loader(subsets[0], 8, shuffle=True, augmentation="flips", seed=5, num_workers=0, mixing=mixing)
        images, masks = next(iter(loader))
        if not early:
            seed_everything(5, deterministic=True)
        model = build_model("Linknet", "tu-test_resnet", 12)
        hashes.add((hash_weights(model.state_dict()), images.numpy().tobytes(), masks.numpy().tobytes()))
    assert len(hashes) == 1


def test_a_score_that_is_no_number_is_not_the_best(subsets, train_small, tmp_path, monkeypatch):
    scores = iter([float("nan"), 0.2, 0.1])
    names = ("miou", "miou_image", "miou_batch", "accuracy")
    monkeypatch.setattr("seglib.training.trainer.compute_metrics", lambda *_: dict.fromkeys(names, next(scores)))
    train_small(subsets, tmp_path, patience=5)
    assert load_checkpoint(tmp_path / "best.pt", required=("epoch",))["epoch"] == 2


@pytest.mark.parametrize("select_by, column, best", [("miou", "miou", "max"), ("loss", "val_loss", "min")])
def test_the_best_epoch_is_kept(subsets, train_small, tmp_path, select_by, column, best):
    history = train_small(subsets, tmp_path, select_by=select_by)
    expected = history["epoch"][getattr(history[column], f"idx{best}")()]
    assert load_checkpoint(tmp_path / "best.pt", required=("epoch",))["epoch"] == expected
    confusion, _, names = load_confusion(tmp_path / "confusion.npz")
    metrics = compute_metrics(confusion, names, 8)
    assert metrics["miou"] == history["miou"][expected - 1]


def test_scores_are_scikit_learns_on_the_same_predictions(subsets):
    _, val_set = subsets
    torch.manual_seed(0)
    model = build_model("FPN", "tu-test_resnet", val_set.data.num_classes)
    loader = build_loader(val_set, 3, shuffle=False, augmentation="none", seed=0, num_workers=0)
    loss = build_loss({"cross_entropy": 1.0}, val_set.data.num_classes)
    evaluation = evaluate(model, loader, lambda images, masks: loss(model(images), masks), val_set.data.num_classes)
    with torch.inference_mode():
        preds = torch.cat([model(images).argmax(1) for images, _ in loader]).numpy().ravel()
    truth = np.concatenate([masks.numpy().ravel() for _, masks in loader])
    metrics = compute_metrics(evaluation.confusion, val_set.data.class_names, 3)
    labels = np.union1d(truth, preds)
    assert metrics["miou"] == pytest.approx(jaccard_score(truth, preds, labels=labels, average="macro"), abs=1e-12)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, preds), abs=1e-12)


class TwoHeads(torch.nn.Module):
    """A model with an auxiliary output in training."""

    auxiliary_weight = 0.4
    takes_uint8 = True

    def __init__(self, num_classes):
        super().__init__()
        self.main, self.extra = (torch.nn.Conv2d(3, num_classes, 1) for _ in range(2))

    def forward(self, images):
        images = images / 255
        return (self.main(images), self.extra(images)) if self.training else self.main(images)


def freeze_norms_and_dropout(model):
    """Batch norm sees micro-batches, dropout draws for each: both are stilled to compare the rest."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train = lambda mode=True: None
            module.training = False
        elif isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
    return model


def one_batch(train_set):
    """A loader of eight images, with ignored pixels that are unevenly spread."""
    loader = build_loader(train_set, 8, shuffle=False, augmentation="none", seed=1, num_workers=0)
    images, masks = next(iter(loader))
    masks[0], masks[3, :40] = 255, 255
    return FakeLoader([(images, masks)], loader.batch_sampler)


def gradient(model, loader, accumulate, mix=None, terms=None, clip_norm=0.0):
    """The gradient that one step of training leaves, and the loss that it reports."""
    copied = copy.deepcopy(model)
    optimizer = torch.optim.SGD(copied.parameters(), lr=1e-9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    loss = build_loss(terms or {"cross_entropy": 0.8, "focal": 0.2}, 12)
    step = GradientStep(copied, optimizer, scheduler, accumulate=accumulate, clip_norm=clip_norm)
    value = one_pass(step, loss, loader, 1, mix)
    return torch.cat([parameter.grad.flatten() for parameter in copied.parameters()]), value


def mix_in_reverse(images, masks, epoch, step):
    mixed = (0.75 * images.float() + 0.25 * images.float().flip(0)).round().to(torch.uint8)
    return mixed, [(masks, 0.75), (masks.flip(0), 0.25)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mix", [None, mix_in_reverse])
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(subsets, mix, dtype):
    loader = one_batch(subsets[0])
    torch.manual_seed(0)
    model = freeze_norms_and_dropout(build_model("FPN", "tu-test_resnet", subsets[0].data.num_classes).to(dtype))
    whole, parts = (gradient(model, loader, accumulate, mix) for accumulate in (1, 4))
    assert whole[0].abs().max() > 1e-3
    assert (whole[0] - parts[0]).norm() < 1e-6 * whole[0].norm()
    assert whole[1] == pytest.approx(parts[1], rel=1e-6)


def test_a_mixed_batch_is_scored_against_each_of_its_sources_by_share(subsets):
    (images, masks), *_ = loader = one_batch(subsets[0])
    torch.manual_seed(0)
    model = TwoHeads(12)
    model.auxiliary_weight = 0.0
    mixed, targets = mix_in_reverse(images, masks, 1, 1)
    loss = build_loss({"cross_entropy": 1.0}, 12)
    expected = sum(share * loss(model(mixed)[0], mask) for mask, share in targets)
    _, value = gradient(model, loader, 2, mix_in_reverse, {"cross_entropy": 1.0})
    assert value == pytest.approx(expected.item(), rel=1e-5)


def test_auxiliary_outputs_are_trained_by_their_weight_and_not_reported(subsets):
    (images, masks), *_ = loader = one_batch(subsets[0])
    torch.manual_seed(0)
    model = TwoHeads(12)
    got, value = gradient(model, loader, 1, terms={"cross_entropy": 1.0})
    loss = build_loss({"cross_entropy": 1.0}, 12)
    main, extra = (loss(logits, masks) for logits in model(images))
    (main + 0.4 * extra).backward()
    assert torch.allclose(got, torch.cat([p.grad.flatten() for p in model.parameters()]), atol=1e-6)
    assert value == pytest.approx(main.item(), rel=1e-5)


class Crowded(TwoHeads):
    """Runs out of memory where it is shown more than a few images in training."""

    def __init__(self, num_classes, most):
        super().__init__(num_classes)
        self.most, self.seen = most, []
        self.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def forward(self, images):
        if self.training:
            self.seen.append(len(images))
        if self.training and len(images) > self.most:
            raise self.error
        return super().forward(images)


class CrowdedEvaluation(TwoHeads):
    """Runs out of memory where it predicts more than a few images."""

    def __init__(self, num_classes, most):
        super().__init__(num_classes)
        self.most, self.seen = most, []

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.main(images.float())


def evaluate_crowded(loader, most):
    torch.manual_seed(0)
    model = CrowdedEvaluation(12, most)
    loss = build_loss({"cross_entropy": 1.0}, 12)
    return evaluate(model, loader, lambda images, masks: loss(model(images), masks), 12), model.seen


def test_an_evaluation_that_runs_out_of_memory_goes_on_with_fewer_images_to_the_same_scores(subsets, capsys):
    loader = build_loader(subsets[1], 5, shuffle=False, augmentation="none", seed=0, num_workers=0)
    whole, _ = evaluate_crowded(loader, 5)
    parted, seen = evaluate_crowded(loader, 2)
    assert np.array_equal(parted.confusion, whole.confusion)
    assert parted.loss == pytest.approx(whole.loss, rel=1e-6)
    assert seen[:6] == [5, 3, 2, 1, 1, 1]
    assert [line.split("; ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "going on with 3 images at a time",
        "going on with 2 images at a time",
    ]
    with pytest.raises(torch.OutOfMemoryError):
        evaluate_crowded(loader, 0)


def train_crowded(loader, most, on_oom, error=None):
    torch.manual_seed(0)
    model = Crowded(12, most)
    model.error = error or model.error
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    step = GradientStep(model, optimizer, scheduler, on_oom=on_oom)
    value = one_pass(step, build_loss({"cross_entropy": 1.0}, 12), loader, 1)
    return step, value, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(subsets, capsys):
    loader = one_batch(subsets[0])
    _, expected_value, expected = train_crowded(loader, 8, "fail")
    step, value, got = train_crowded(loader, 3, "accumulate")
    assert step.model.seen == [8, 4, 2, 2, 2, 2]
    assert step.split == 4
    assert torch.allclose(got, expected, atol=1e-6)
    assert value == pytest.approx(expected_value, rel=1e-6)
    assert "out of memory with 4 images at a time; going on with 2, the step is still of 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        "upsample_nearest_nhwc only supports grad_output tensors with less than INT_MAX elements, but got [16, 64, 2048]",
        "Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true, but got false.",
        "could not create a primitive",
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_what_is_too_large_for_a_kernel_is_treated_as_out_of_memory(subsets, words):
    step, _, _ = train_crowded(one_batch(subsets[0]), 3, "accumulate", RuntimeError(words))
    assert step.split == 4


@pytest.mark.parametrize(("most", "seen"), [(1, [8, 4, 2, 1] + 8 * [1]), (2, [8, 4] + 4 * [2])])
def test_micro_batches_are_halved_down_to_one_image(subsets, most, seen):
    step, _, _ = train_crowded(one_batch(subsets[0]), most, "accumulate")
    assert step.model.seen == seen


@pytest.mark.parametrize(
    ("most", "on_oom", "words"),
    [
        (3, "fail", r"8 images of 64 px .* \(peak \d+ MB\); 3 do fit: set batch_size: 2 and accumulate: 4, or on_oom"),
        (0, "fail", "8 images of 64 px at a time do not fit .* not even one fits: lower image_size"),
        (0, "accumulate", "2 images of 64 px at a time do not fit .* not even one fits"),
    ],
)
def test_out_of_memory_is_told_with_what_fits(subsets, most, on_oom, words):
    with pytest.raises(torch.OutOfMemoryError, match=words):
        train_crowded(one_batch(subsets[0]), most, on_oom)


def test_a_gradient_that_is_too_long_is_shortened_and_a_short_one_is_not(subsets):
    loader = one_batch(subsets[0])
    torch.manual_seed(0)
    model = TwoHeads(12)
    whole, _ = gradient(model, loader, 1)
    shortened, _ = gradient(model, loader, 1, clip_norm=whole.norm().item() / 2)
    assert torch.allclose(shortened, whole / 2, atol=1e-6)
    assert torch.equal(gradient(model, loader, 1, clip_norm=2 * whole.norm().item())[0], whole)


def test_a_frozen_encoder_keeps_its_weights_and_statistics_until_it_is_set_free(subsets):
    train_set, _ = subsets
    loader = build_loader(train_set, 8, shuffle=True, augmentation="none", seed=1, num_workers=0)
    model = build_model("FPN", "tu-test_resnet", train_set.data.num_classes)
    optimizer = build_optimizer("adamw", model, 1e-3, 0.1)
    scheduler = build_scheduler("constant", optimizer, 2, len(loader), 0.0)
    step, loss = GradientStep(model, optimizer, scheduler, freeze_epochs=1), build_loss({"cross_entropy": 1.0}, 12)
    encoder, whole = (lambda: hash_weights(model.encoder.state_dict())), hash_weights(model.state_dict())
    before = encoder()
    one_pass(step, loss, loader, 1)
    assert encoder() == before
    assert hash_weights(model.state_dict()) != whole
    one_pass(step, loss, loader, 2)
    assert encoder() != before


def test_a_model_without_an_encoder_cannot_be_frozen():
    model = build_model("FCDenseNet56", "", 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="freeze_epochs must be 0 for a model without an encoder, got 2"):
        GradientStep(model, optimizer, freeze_epochs=2)


@pytest.mark.parametrize("kill", [None, (3, 1)])
def test_training_stops_when_the_score_has_not_become_better_for_long_enough(subsets, train_small, tmp_path, kill):
    scores = iter([0.2, 0.3, 0.1, 0.25, 0.3, 0.9])
    options = {"epochs": 6, "patience": 3, "select_by": "accuracy"}
    reported = []

    class Listener:
        def on_end(self, trainer):
            reported.append(len(trainer.history))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seglib.training.trainer.compute_metrics", lambda *_: dict.fromkeys(
            ("miou", "miou_image", "miou_batch", "accuracy"), next(scores)))  # fmt: skip
        if kill:
            with pytest.raises(KeyboardInterrupt):
                train_small(subsets, tmp_path, callback=Listener(), kill=kill, **options)
        history = train_small(subsets, tmp_path, callback=Listener(), **options)
    assert history["accuracy"].tolist() == [0.2, 0.3, 0.1, 0.25, 0.3]
    assert load_checkpoint(tmp_path / "best.pt", required=("epoch",))["epoch"] == 2
    assert reported == [5]


class FakeLoader(list):
    def __init__(self, batches, batch_sampler):
        super().__init__(batches)
        self.batch_sampler = batch_sampler


def test_a_tiny_model_overfits_two_images(subsets):
    train_set, _ = subsets
    images, masks = (
        torch.from_numpy(np.stack(arrays)) for arrays in zip(*[train_set.read(i) for i in (0, 1)], strict=True)
    )
    images = images.permute(0, 3, 1, 2)
    torch.manual_seed(0)
    model = build_model("Unet", "tu-test_resnet", train_set.data.num_classes)
    loss = build_loss({"cross_entropy": 0.5, "dice": 0.5}, train_set.data.num_classes)
    optimizer = build_optimizer("adamw", model, 3e-3, 0.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model(images), masks).backward()
        optimizer.step()
    assert (model(images).argmax(1) == masks).float().mean() > 0.97


def test_a_loss_that_is_not_finite_stops_the_run(subsets):
    train_set, _ = subsets
    loader = build_loader(train_set, 8, shuffle=True, augmentation="none", seed=1, num_workers=0)
    model = build_model("FPN", "tu-test_resnet", train_set.data.num_classes)
    with torch.no_grad():
        model.network.segmentation_head[0].bias.fill_(float("nan"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    loss = build_loss({"cross_entropy": 1.0}, train_set.data.num_classes)
    loader.batch_sampler.epoch = 1
    images = ", ".join(str(train_set.image_ids[position]) for _, position in next(iter(loader.batch_sampler)))
    with pytest.raises(FloatingPointError, match=f"became nan in epoch 1, step 1, on the images {images}; look at"):
        one_pass(GradientStep(model, optimizer, scheduler), loss, loader, 1)


@pytest.mark.parametrize(
    "steps, previous, words",
    [
        ([1.0, 30.0], [], r"diverged to 15\.5, from 1 before \(highest: 30\) in epoch 3, step 2, on the images"),
        ([4.0, 8.0], [1.0, 0.5], r"diverged to 6, from 0\.5 before \(highest: 8\) in epoch 3, step 2"),
        ([1.0, float("inf"), 1.0], [], "became nan in epoch 3, step 2, on the images"),
        ([4.0, 8.0], [5.0, 0.5], None),  # no higher than it began
        ([0.4, 0.8], [1.0, 0.5], None),
        ([-4.0, 8.0], [-1.0], None),  # a loss below zero has no multiples
    ],
)
def test_a_loss_that_diverges_is_told_with_the_images_of_its_worst_step(subsets, steps, previous, words):
    loader = build_loader(subsets[0], 4, shuffle=True, augmentation="none", seed=1, num_workers=0)
    loss = EpochLoss(CPU)
    for step, value in enumerate(steps, 1):
        loss.add(step, torch.tensor(value), torch.tensor(10))
    if words is None:
        assert loss.take_mean(loader, 3, previous) == pytest.approx(np.mean(steps))
        return
    loader.batch_sampler.epoch = 3
    keys = [*loader.batch_sampler][1]
    with pytest.raises(FloatingPointError, match=words) as caught:
        loss.take_mean(loader, 3, previous)
    assert ", ".join(str(subsets[0].image_ids[position]) for _, position in keys) in str(caught.value)


def test_debug_fails_loudly_when_the_loss_does_not_fall():
    require_falling_loss(pd.DataFrame({"train_loss": [2.0, 1.0]}))
    for losses in ([1.0, 1.0], [1.0, 2.0], [1.0, float("nan")]):
        with pytest.raises(RuntimeError, match="training loss must fall, but went from"):
            require_falling_loss(pd.DataFrame({"train_loss": losses}))


def test_auto_precision_is_what_the_device_computes_in():
    assert choose_precision("auto", CPU) in ("float32", "bfloat16")
    assert choose_precision("float16", CPU) == "float16"
