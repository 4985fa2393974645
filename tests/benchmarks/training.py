"""Training steps a second beside a plain loop of the usual notebook, on the same model, images and machine, by hand.

python tests/benchmarks/training.py [--data_dir DIR] [--model ARCHITECTURE/ENCODER --size PX --batch N] [--threads N]

The plain loop is what baselines hand out: decode and annToMask for each sample, albumentations, images as float / 255,
float32, Adam, loss.item() and a NumPy confusion matrix at each step. All loops start from the same weights and pass over
the same images in turn, an epoch of --steps batches at a time; medians of the epochs after the first are compared: ours,
the plain one, ours without a loader, and on CUDA that without deterministic algorithms.
"""

import argparse
import contextlib
import copy
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import DataLoader, Dataset

from seglib.data.dataset import Subset, open_data
from seglib.data.loader import build_loader
from seglib.data.synthetic import make_synthetic
from seglib.models import build_model
from seglib.training.device import choose_precision, move, seed_everything
from seglib.training.losses import build_loss
from seglib.training.optim import build_optimizer, build_scheduler
from seglib.training.step import EpochLoss, GradientStep

NO_LOADER, FAST = "no loader", "no loader, not deterministic"  # seglib's step with its batches on the device
TARGETS = {"cpu": 2.0, "cuda": 3.0}  # times the plain loop
SEED = 21
LR = 1e-4


class Setting(NamedTuple):
    """What is trained: a model by its names, the side of its images [px], images a step."""

    architecture: str
    encoder: str
    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.architecture}/{self.encoder}, {self.size} px, batch {self.batch}"


SETTINGS = (Setting("DeepLabV3Plus", "resnet50", 256, 8), Setting("FPN", "resnet18", 192, 8))


class Loop(NamedTuple):
    """One way to train: `run_epoch()` makes all steps of an epoch; and the loader processes that it uses."""

    run_epoch: Callable[[], None]
    num_workers: int


def main() -> None:
    options = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads or torch.get_num_threads())
    print(describe_machine(device), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SEGLIB_CACHE"] = f"{scratch}/cache"
        for setting in choose_settings(options):
            images = open_images(options, setting, Path(scratch))
            compare(setting, images, device, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="a COCO folder with train.json; default: the synthetic set")
    parser.add_argument("--model", help="ARCHITECTURE/ENCODER; default: two settings, one after the other")
    parser.add_argument("--size", type=int, default=256, help="side of the images [px], with --model")
    parser.add_argument("--batch", type=int, default=8, help="images a step, with --model")
    parser.add_argument("--steps", type=int, default=8, help="steps an epoch")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each loop that count, after one that does not")
    parser.add_argument("--threads", type=int, default=0, help="of torch; default: its own choice")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 2, 4],
        help="loader processes; each loop gets what is fastest for it",
    )
    parser.add_argument("--fast", action="store_true", help="as with `deterministic: false`; matters on CUDA")
    return parser.parse_args()


def describe_machine(device: torch.device) -> str:
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    busy = f"{os.getloadavg()[0]:.1f} processes were at work before on {os.cpu_count()} processors"
    return f"{device}{name}, {torch.get_num_threads()} threads, {choose_precision('auto', device)}; {busy}"


def choose_settings(options: argparse.Namespace) -> tuple[Setting, ...]:
    if not options.model:
        return SETTINGS
    architecture, _, encoder = options.model.partition("/")
    return (Setting(architecture, encoder, options.size, options.batch),)


def open_images(options: argparse.Namespace, setting: Setting, scratch: Path) -> Subset:
    """As many images as an epoch has; the synthetic ones are drawn at the size at which they are trained on."""
    count, data_dir = options.steps * setting.batch, options.data_dir
    if data_dir is None:  # a fifth of them are for validation
        data_dir = make_synthetic(scratch / f"{setting.size}", num_images=2 * count, image_size=setting.size, seed=SEED)
    train, _ = open_data(
        str(data_dir), "train.json", "val.json", split="given", folds=5, fold=0, seed=SEED, paint_order="class_id",
        background="ignore", image_size=setting.size, cache=True,
    )  # fmt: skip
    if len(train) < count:
        raise SystemExit(f"{data_dir}: required {count} images (--steps x --batch), got {len(train)}")
    return Subset(train.data, train.pixels, train.indices[:count])


def compare(setting: Setting, images: Subset, device: torch.device, options: argparse.Namespace) -> None:
    """Train in every way in turn, an epoch each time; print seconds a step, and the ratios."""
    seed_everything(SEED, deterministic=not options.fast)
    model = build_model(setting.architecture, setting.encoder, len(images.data.class_names))
    builders = {"plain loop": build_plain_loop, "seglib": build_our_loop, NO_LOADER: partial(build_our_loop, held=True)}
    if device.type == "cuda" and not options.fast:
        builders[FAST] = builders[NO_LOADER]
    loops = {}
    for name, build in builders.items():
        set_deterministic(name, options)
        workers = [0] if name in (NO_LOADER, FAST) else options.workers
        ways = [build(copy.deepcopy(model), images, setting.batch, count, device) for count in workers]
        loops[name] = choose_loop(ways, device)
    seconds = {name: [] for name in loops}
    for _ in range(options.epochs):
        for name, loop in loops.items():
            set_deterministic(name, options)
            seconds[name].append(time_epoch(loop, device) / options.steps)
    report(setting, loops, seconds, device)


def set_deterministic(name: str, options: argparse.Namespace) -> None:
    """The usual notebook makes cuDNN deterministic and leaves other operations as they are."""
    torch.use_deterministic_algorithms(name in ("seglib", NO_LOADER) and not options.fast)


def choose_loop(loops: list[Loop], device: torch.device) -> Loop:
    """The loop with the loader processes that are fastest for it; an epoch that does not count is behind each."""
    for loop in loops:
        loop.run_epoch()
    return min(loops, key=lambda loop: time_epoch(loop, device)) if len(loops) > 1 else loops[0]


def report(setting: Setting, loops: dict[str, Loop], seconds: dict[str, list[float]], device: torch.device) -> None:
    print(setting)
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"  {name:{len(FAST)}}  {median:.3f} s a step ({min(values):.3f} to {max(values):.3f}), {setting.batch / median:.1f}"
            f" images/s, {loops[name].num_workers} loader processes"
        )
    plain, ours, ceiling, *fast = (statistics.median(values) for values in seconds.values())
    print(f"  {plain / ours:.2f} times the plain loop (target on {device.type}: {TARGETS[device.type]:.0f})")
    print(f"  {ceiling / ours:.2f} of the step without a loader (target: 0.95)", flush=True)
    for each in fast:
        print(f"  {each / ceiling:.2f} of the step without deterministic algorithms (target: 0.95)", flush=True)


def time_epoch(loop: Loop, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    loop.run_epoch()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PlainDataset(Dataset):
    """A baseline's data set: decodes the image and paints every annotation, each time."""

    def __init__(self, images: Subset):
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(str(images.data.json_path))
        self.folder, self.ids = images.data.data_dir, [int(image_id) for image_id in images.image_ids]
        self.class_ids = {category: rank for rank, category in enumerate(sorted(self.coco.cats), start=1)}
        flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.RandomRotate90(p=0.5)]  # our preset `flips`
        self.transform = A.Compose([A.Resize(images.image_size, images.image_size), *flips, A.ToTensorV2()])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        (info,) = self.coco.loadImgs(self.ids[index])
        image = cv2.cvtColor(cv2.imread(str(self.folder / info["file_name"])), cv2.COLOR_BGR2RGB)
        image = image.astype(np.float32) / 255.0
        mask = np.full((info["height"], info["width"]), 255, np.uint8)
        annotations = self.coco.loadAnns(self.coco.getAnnIds(imgIds=info["id"]))
        for annotation in sorted(annotations, key=lambda annotation: annotation["category_id"]):
            mask[self.coco.annToMask(annotation) == 1] = self.class_ids[annotation["category_id"]]
        sample = self.transform(image=image, mask=mask)
        return sample["image"], sample["mask"]


def build_plain_loop(model: nn.Module, images: Subset, batch: int, num_workers: int, device: torch.device) -> Loop:
    """The usual notebook's training loop."""
    num_classes = len(images.data.class_names)
    loader = DataLoader(
        PlainDataset(images), batch, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0,
        collate_fn=lambda samples: tuple(zip(*samples, strict=True)),
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=1e-6)

    def run_epoch() -> None:
        model.train()
        hist, losses = np.zeros((num_classes, num_classes)), []
        for images, masks in loader:
            images, masks = torch.stack(images).to(device), torch.stack(masks).long().to(device)
            outputs = model(images)
            loss = criterion(outputs, masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            hist += count_pairs(masks.cpu().numpy(), outputs.argmax(dim=1).cpu().numpy(), num_classes)

    return Loop(run_epoch, num_workers)


def count_pairs(truth: np.ndarray, pred: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion matrix as baselines count it."""
    valid = (truth >= 0) & (truth < num_classes)
    pairs = np.bincount(num_classes * truth[valid].astype(int) + pred[valid], minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def build_our_loop(
    model: nn.Module, images: Subset, batch: int, num_workers: int, device: torch.device, held: bool = False
) -> Loop:
    """What the training notebook does with its defaults; `held`: an epoch's batches lie on the device from the start."""
    loader = build_loader(images, batch, shuffle=True, augmentation="flips", seed=SEED, num_workers=num_workers)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer("adam", model, LR, 1e-6)
    scheduler = build_scheduler("constant", optimizer, 1000, len(loader), 0.0)
    loss = build_loss({"cross_entropy": 1.0}, len(images.data.class_names))
    step = GradientStep(model, optimizer, scheduler, precision=choose_precision("auto", device))
    epochs = itertools.count(1)
    batches = [(move(images, device), move(masks, device)) for images, masks in loader] if held else loader

    def compute_loss(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss(model(images), targets)

    def run_epoch() -> None:
        loader.batch_sampler.epoch, losses = next(epochs), EpochLoss(device)
        step.set_mode(loader.batch_sampler.epoch)
        for number, (images, masks) in enumerate(batches, 1):
            value = step.backward(compute_loss, move(images, device), move(masks, device), batch)
            step.update()
            losses.add(number, *value)
        losses.take_mean(loader, loader.batch_sampler.epoch, [])

    return Loop(run_epoch, num_workers)


if __name__ == "__main__":
    main()
