"""How often intervals over other images hold the truth, on real confusions: `python tests/benchmarks/scenes.py RUNS.npz`.

RUNS.npz holds (frames, C, C) counts of several runs on one video, as `condition|seed`. Its frames in a ring are all there
is: scenes are stretches drawn from them, so that the true difference of two runs, and of two conditions over seeds, is
known. Single frames and whole scenes are drawn again (percentile bootstrap), and compared with what seglib does.
"""

import argparse
from itertools import product

import numpy as np

from seglib.evaluation.compare import STRETCHES, compare_images, compare_noises
from seglib.evaluation.metrics import mean_iou
from seglib.inference.postprocess import choose_by_halves


def draw_scenes(rng: np.random.Generator, frames: int, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of frames, and the scene of each."""
    starts = rng.integers(frames, size=len(lengths))
    places = [(start + np.arange(length)) % frames for start, length in zip(starts, lengths, strict=True)]
    return np.concatenate(places), np.repeat(np.arange(len(lengths)), lengths)


def bootstrap(a: np.ndarray, b: np.ndarray, scenes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    units = [np.stack([side[scenes == scene].sum(0) for scene in np.unique(scenes)]) for side in (a, b)]
    count = len(units[0])
    weights = rng.multinomial(count, np.full(count, 1 / count), size=300)
    drawn = [mean_iou(np.tensordot(weights, side, 1)) for side in units]
    return np.quantile(drawn[0] - drawn[1], [0.025, 0.975])


def show(held: list[list[bool]], *widths: int) -> str:
    return "  ".join(f"{share:{width}.1%}" for share, width in zip(np.mean(held, 0), widths, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", help="an .npz of (frames, C, C) counts of runs, as condition|seed")
    parser.add_argument("--trials", type=int, default=400, help="of each kind")
    options = parser.parse_args()
    with np.load(options.runs) as file:
        runs = {name: file[name].astype(np.int64) for name in file.files if "|" in name}
    names, frames = list(runs), len(next(iter(runs.values())))
    truth = {name: mean_iou(each.sum(0)) for name, each in runs.items()}

    print("coverage of 95 % intervals for two runs\nscenes  frames each  bootstrap of frames  of scenes  seglib")
    for count, (low, high) in product((3, 4, 5, 8, 12, 20), ((8, 8), (3, 20))):
        rng, held = np.random.default_rng([count, low]), []
        for _ in range(options.trials):
            places, scenes = draw_scenes(rng, frames, rng.integers(low, high + 1, size=count))
            first, second = rng.choice(names, 2, replace=False)
            a, b, true = runs[first][places], runs[second][places], truth[first] - truth[second]
            answers = [bootstrap(a, b, np.arange(len(a)), rng), bootstrap(a, b, scenes, rng)]
            answers.append(compare_images(a, b, scenes)[1:])
            held.append([low <= true <= high for low, high in answers])
        print(
            f"{count:>6}  {f'{low} to {high}':>11}  {show(held, 19, 8, 5)}",
            flush=True,
        )

    print(
        f"one video of {frames} frames, made of pieces; {STRETCHES} stretches\npieces  bootstrap of frames  of stretches  seglib"
    )
    for length in (20, 40):
        rng, held = np.random.default_rng(length), []
        for _ in range(options.trials):
            places = draw_scenes(rng, frames, rng.geometric(1 / length, size=frames))[0][:frames]
            scenes = np.arange(frames) * STRETCHES // frames
            first, second = rng.choice(names, 2, replace=False)
            a, b, true = runs[first][places], runs[second][places], truth[first] - truth[second]
            answers = [bootstrap(a, b, np.arange(frames), rng), bootstrap(a, b, scenes, rng)]
            answers.append(compare_images(a, b, scenes)[1:])
            held.append([low <= true <= high for low, high in answers])
        print(f"{length:>6}  {show(held, 18, 11, 5)}", flush=True)

    print("two conditions over other seeds and other images\nscenes  seeds  images alone  seeds alone  both")
    conditions = {}
    for name in names:
        conditions.setdefault(name.split("|")[0], []).append(name)
    means = {name: np.mean([truth[run] for run in members]) for name, members in conditions.items()}
    for count, seeds in product((5, 12), (2, 3, 5)):
        rng, held = np.random.default_rng([count, seeds]), []
        for _ in range(options.trials):
            places, scenes = draw_scenes(rng, frames, np.full(count, 8))
            first, second = rng.choice(list(conditions), 2, replace=False)
            a, b = (
                np.stack([runs[run][places] for run in rng.choice(conditions[side], seeds)]) for side in (first, second)
            )
            found, true = compare_noises(a, b, scenes), means[first] - means[second]
            held.append([found[f"{kind}low"] <= true <= found[f"{kind}high"] for kind in ("image_", "seed_", "")])
        print(f"{count:>6}  {seeds:>5}  {show(held, 11, 10, 3)}", flush=True)

    print(
        "useless steps that are kept, the best of 12 candidates on the other half of the scenes\nscenes  one step  of 12"
    )
    for count in (5, 8, 12, 20):
        rng, kept = np.random.default_rng(count), []
        for _ in range(options.trials):
            places, scenes = draw_scenes(rng, frames, rng.integers(3, 21, size=count))
            pair = [runs[name][places] for name in rng.choice(names, 2, replace=False)]
            # All thirteen take each scene from one run or the other by the toss of a coin: none is better than another.
            before, *after = (
                np.where(coins[scenes][:, None, None], *pair) for coins in rng.integers(2, size=(13, count))
            )
            held_out = choose_by_halves(np.stack([before, *after], axis=1), scenes)[1]
            kept.append([compare_images(each, before, scenes)[1] > 0 for each in (after[0], held_out)])
        print(f"{count:>6}  {show(kept, 8, 5)}", flush=True)


if __name__ == "__main__":
    main()
