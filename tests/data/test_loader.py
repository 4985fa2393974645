"""Batches: the same for any number of workers, whole epochs, expanded and mixed as asked."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seglib.data import loader
from seglib.data.dataset import open_data
from seglib.data.loader import EpochBatches, build_loader
from seglib.errors import InputError
from seglib.files import RUNS_AT_ONCE

OPTIONS = {"split": "given", "folds": 4, "fold": 0, "seed": 1, "paint_order": "class_id", "background": "class",
           "image_size": 64, "cache": False}  # fmt: skip


def open_small(folder):
    return open_data(str(folder), "train.json", "val.json", **OPTIONS)


def order_batches(count, batch_size, shuffle):
    return list(EpochBatches(lambda epoch: np.arange(count), batch_size, seed=1, shuffle=shuffle))


def batches(subset, workers, epoch, seed=1):
    loader = build_loader(subset, 4, shuffle=True, augmentation="flips", seed=seed, num_workers=workers)
    loader.batch_sampler.epoch = epoch
    return [torch.cat([images.flatten(), masks.flatten()]) for images, masks in loader]


def test_batches_are_uint8_channels_last_with_their_masks(small_data):
    train, _ = open_small(small_data)
    loader = build_loader(train, 4, shuffle=False, augmentation="none", seed=1, num_workers=0)
    images, masks = next(iter(loader))
    image, mask = train.read(0)
    assert images.shape == (4, 3, 64, 64)
    assert images.dtype == masks.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(images[0].permute(1, 2, 0), image)
    assert np.array_equal(masks[0], mask)


def test_samples_do_not_depend_on_the_number_of_workers(small_data):
    train, _ = open_small(small_data)
    expected = batches(train, 0, epoch=3)
    for workers in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(expected, batches(train, workers, epoch=3), strict=True))


def test_epochs_differ_and_repeat(small_data):
    train, _ = open_small(small_data)
    first, again, second = batches(train, 0, 1), batches(train, 0, 1), batches(train, 0, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    "count, batch_size, sizes", [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1])]
)
def test_a_lonely_last_image_is_left_out_of_training(count, batch_size, sizes):
    assert [len(batch) for batch in order_batches(count, batch_size, shuffle=True)] == sizes


def test_validation_keeps_every_image_in_order():
    assert [position for batch in order_batches(9, 4, shuffle=False) for _, position in batch] == list(range(9))


def test_each_image_comes_once_in_an_epoch():
    assert sorted(position for batch in order_batches(10, 4, shuffle=True) for _, position in batch) == list(range(10))


def test_expanded_epochs_hold_the_original_and_transformed_copies(small_data):
    train, _ = open_small(small_data)
    loader = build_loader(train, 4, shuffle=True, augmentation="flips", seed=1, num_workers=0, expand=4)
    positions = [position for batch in loader.batch_sampler for _, position in batch]
    assert sorted(positions) == list(range(4 * len(train)))
    original = train.read(3)[0]
    copies = [loader.dataset[1, copy * len(train) + 3][0].numpy() for copy in range(4)]
    assert np.array_equal(copies[0], original)
    assert len({copy.tobytes() for copy in copies}) > 1
    assert all(np.array_equal(np.sort(copy, axis=None), np.sort(original, axis=None)) for copy in copies)


MIXING = {"copy_paste": 1.0, "background": {"p": 0.5}, "mosaic": 0.5, "cutmix": 0.5}


@pytest.mark.parametrize("workers", [1, 2])
def test_mixed_and_augmented_samples_do_not_depend_on_the_number_of_workers(small_data, workers):
    train, _ = open_small(small_data)
    options = {"shuffle": True, "augmentation": "distort", "seed": 3, "mixing": MIXING, "expand": 2}
    here = list(build_loader(train, 4, num_workers=0, **options))
    there = list(build_loader(train, 4, num_workers=workers, **options))
    for (images, masks), (others, other_masks) in zip(here, there, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(masks, other_masks)


def test_auto_starts_loader_processes_for_a_gpu_only_as_cores_runs_and_shared_memory_allow(monkeypatch):
    room = {"free": 64 * 2**30}
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: SimpleNamespace(**room))
    monkeypatch.delenv(RUNS_AT_ONCE, raising=False)
    assert loader.choose_workers(3000, 16, 512) == 0  # of a CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loader.choose_workers(3000, 16, 512) == 12
    assert loader.choose_workers(33, 16, 512) == 3  # one for each batch
    monkeypatch.setenv(RUNS_AT_ONCE, "4")
    assert loader.choose_workers(3000, 16, 512) == 3
    room["free"] = 64 * 2**20  # of a container that nobody has given more
    assert loader.choose_workers(3000, 16, 512) == 0  # three batches are 48 MiB
    assert loader.choose_workers(3000, 8, 256) == 3


def test_an_error_in_a_loader_process_says_what_it_said_there(small_data):
    train, _ = open_small(small_data)

    def fail(place):
        raise InputError(f"image {place}: required pixels, got none; copy it again")

    broken = replace(train, pixels=replace(train.pixels, read=fail))
    loader = build_loader(broken, 4, shuffle=False, augmentation="none", seed=1, num_workers=1)
    with pytest.raises(InputError) as error:
        next(iter(loader))
    assert str(error.value) == "image 0: required pixels, got none; copy it again"


def test_mixing_changes_samples_and_keeps_the_classes(small_data):
    train, _ = open_small(small_data)
    plain, mixed = (
        build_loader(train, 4, shuffle=False, augmentation="none", seed=3, num_workers=0, mixing=mixing)
        for mixing in ({}, MIXING)
    )
    pairs = [(plain.dataset[1, position], mixed.dataset[1, position]) for position in range(8)]
    assert sum(not torch.equal(before[0], after[0]) for before, after in pairs) > 4
    assert all(set(after[1].unique().tolist()) <= {*range(train.data.num_classes), 255} for _, after in pairs)
