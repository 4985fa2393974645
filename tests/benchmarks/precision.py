"""What `precision: auto` and channels last bring beside float32 in torch's own layout: `python tests/benchmarks/precision.py`.

Training steps of small and usual models on the device that is there, the ways in turn; medians. A rule of the device
chooses, not a stopwatch in each run: that would now and then give two seeds of one condition other arithmetic.
"""

import argparse
import copy
import statistics
import time

import torch

from seglib.models import build_model
from seglib.training.device import autocast, choose_precision

MODELS = (  # architecture, encoder, side of the images [px], images a step
    ("FPN", "tu-test_resnet", 64, 2), ("FPN", "tu-test_resnet", 128, 8), ("Unet", "tu-test_resnet", 64, 4),
    ("Unet", "tu-test_resnet", 128, 8), ("Unet", "resnet18", 128, 4), ("Unet", "mobilenet_v2", 128, 4),
    ("Unet", "timm-mobilenetv3_small_100", 64, 4), ("Unet", "timm-efficientnet-b0", 128, 4),
    ("DeepLabV3Plus", "resnet18", 128, 4), ("DeepLabV3Plus", "resnet50", 256, 4), ("Segformer", "mit_b0", 128, 4),
    ("UPerNet", "tu-convnext_atto", 128, 4), ("SegNet", "vgg16", 64, 4), ("FCDenseNet56", "", 64, 4),
)  # fmt: skip
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=9, help="that count, of each way, after one that does not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = choose_precision("auto", device)
    print(f"{device}, {options.threads} threads; auto is {chosen}. Times as fast as float32, contiguous:")
    ways = [(precision, layout) for precision in dict.fromkeys(("float32", chosen)) for layout in LAYOUTS]
    for architecture, encoder, size, batch in MODELS:
        model = build_model(architecture, encoder, 12).to(device)
        medians = time_ways(model, size, batch, ways, options.steps)
        shown = ", ".join(f"{' '.join(way)} {medians[0] / each:.2f}" for way, each in zip(ways, medians, strict=True))
        print(f"{architecture}/{encoder}, {size} px, batch {batch}: {medians[0] * 1000:.0f} ms; {shown}", flush=True)


def time_ways(model: torch.nn.Module, size: int, batch: int, ways: list, steps: int) -> list[float]:
    """Median seconds of a training step, for each way."""
    device, draw = next(model.parameters()).device, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=draw).permute(0, 3, 1, 2)
    targets = torch.randint(0, 12, (batch, size, size), generator=draw).to(device)
    models = [copy.deepcopy(model).to(memory_format=LAYOUTS[layout]) for _, layout in ways]
    optimizers = [torch.optim.AdamW(each.parameters(), 1e-4) for each in models]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(1 + steps):
        for place, (precision, layout) in enumerate(ways):
            given = images.to(device).contiguous(memory_format=LAYOUTS[layout])
            began = time.perf_counter()
            with autocast(device, precision):
                logits = models[place](given)
            logits = logits[0] if isinstance(logits, tuple) else logits
            loss = torch.nn.functional.cross_entropy(logits.float(), targets)
            optimizers[place].zero_grad()
            loss.backward()
            optimizers[place].step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[place].append(time.perf_counter() - began)
    return [statistics.median(values[1:]) for values in seconds]


if __name__ == "__main__":
    main()
