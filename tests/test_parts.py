"""Own losses and models: registered, checked before a grid starts, trained, kept with the run and opened again."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from torch import nn

from seglib import parts, register
from seglib.data.augment import build_augmentation
from seglib.data.splits import make_split
from seglib.errors import InputError
from seglib.evaluation.metrics import load_confusion
from seglib.files import PROJECT
from seglib.inference.runs import load_finished_run
from seglib.models import build_model
from seglib.parts import find_parts, hash_parts, keep_cells, load_parts, read_parts
from seglib.runs.grid import load_grid
from seglib.runs.grid_file import read_grid_file
from seglib.training.losses import build_loss
from seglib.training.step import GradientStep

MY_PARTS = '''"""Parts of a user."""
import torch
from torch import nn
from seglib import register


@register("model")
class TinyNet(nn.Module):
    """Two convolutions."""

    def __init__(self, num_classes: int, width: int = 16):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, num_classes, 1)

    def forward(self, images):
        return self.last(self.first(images).relu())


@register("loss")
def poly1(logits, target, weight, *, epsilon: float = 1.0):
    """Cross entropy + epsilon (1 - p)."""
    log_p = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    return ((-log_p + epsilon * (1 - log_p.exp())) * weight).sum() / weight.sum().clamp_min(1)  # valid pixels


@register("augmentation")
def speckle(*, p: float = 0.5, sigma: float = 0.05):
    """Noise of one strength."""
    import albumentations

    return albumentations.GaussNoise(std_range=(sigma, sigma), p=p)


@register("split")
def by_place(table, folds, seed, *, shift: int = 0):
    """The fold is the place among the images, by turns."""
    return (table.index + shift) % folds


@register("optimizer")
def plain_sgd(param_groups, lr, weight_decay, *, momentum: float = 0.0):
    """torch's own."""
    return torch.optim.SGD(param_groups, lr=lr, weight_decay=weight_decay, momentum=momentum)


@register("scheduler")
def halving(epoch, epochs, *, every: float = 1.0):
    """Half the rate after so many epochs."""
    return 0.5 ** (epoch // every)


@register("mixing")
def turn(images, masks, rng):
    """Upside down, whole batches."""
    return images.flip(2), masks.flip(1)


@register("callback")
class CountSteps:
    """Writes how many steps were made."""

    def __init__(self, name: str = "steps.txt"):
        self.name, self.steps = name, 0

    def on_step(self, trainer):
        self.steps += 1

    def on_end(self, trainer):
        (trainer.run_dir / self.name).write_text(str(self.steps))


@register("metric")
def missed(confusion, higher_is_better: bool = False):
    """Share of the objects' pixels that are taken for background."""
    return confusion[1:, 0].sum() / confusion[1:].sum()
'''
KINDS = ("model", "loss", "metric", "augmentation", "split", "optimizer", "scheduler", "mixing", "callback")
GRID = """
notebook: notebooks/02_train.ipynb
parts: [my_parts.py]
fixed: {data_dir: synthetic, image_size: 64, encoder: "", encoder_weights: "", batch_size: 8, lr: 0.01, select_by: missed,
  augmentation: [flips, speckle: {p: 0.3}], split: {by_place: {shift: 1}}, optimizer: {plain_sgd: {momentum: 0.9}},
  scheduler: halving, scheduler_options: {every: 2}, mixing: {turn: 0.5}, callbacks: {CountSteps: {name: count.txt}}}
runs:
  - {architecture: {TinyNet: {width: 8}}, loss: {poly1: {weight: 0.5, epsilon: 2.0}}}
"""


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr(parts, "_registered", {})


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "my_parts.py").write_text(MY_PARTS)
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path


def change(folder: Path, before: str, after: str, name: str = "my_parts.py") -> None:
    text = (folder / name).read_text()
    assert before in text
    (folder / name).write_text(text.replace(before, after))


def load(folder: Path):
    return load_grid(folder / "grid.yaml", folder / "outputs", {})


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_importing_seglib_or_reading_parts_imports_no_torch(folder):
    code = f"import sys, seglib; seglib.register; from seglib.parts import read_parts; read_parts([{str(folder / 'my_parts.py')!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout.strip() == "False"


def test_a_file_is_read_as_it_is_registered(folder):
    change(folder, "width: int = 16", 'width: int, *, act: str = "relu", deep: bool = False, extra=None')
    read = {part.name: part for part in read_parts([folder / "my_parts.py"])}
    load_parts([folder / "my_parts.py"])
    assert read == {name: part for kind in KINDS for name, part in find_parts(kind).items() if part.own}
    assert list(read["TinyNet"].options) == ["width", "act", "deep", "extra"] and read["TinyNet"].needed == ("width",)


def test_the_loss_is_its_formula(folder):
    load_parts([folder / "my_parts.py"])
    logits, mask = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    mask[0, 0] = 255
    loss = build_loss({"poly1": {"weight": 0.5, "epsilon": 2.0}, "cross_entropy": 0.25}, 3)(logits, mask)
    ce = nn.functional.cross_entropy(logits, mask.long(), ignore_index=255, reduction="none")[mask != 255]
    assert loss == pytest.approx((0.5 * (ce + 2 * (1 - (-ce).exp())) + 0.25 * ce).mean().item(), rel=1e-5)


def test_the_model_is_given_normalised_images(folder):
    load_parts([folder / "my_parts.py"])
    model = build_model({"TinyNet": {"width": 4}}, "", 5)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert model.network.first.out_channels == 4
    assert torch.equal(model(images), model.network((images.float() / 255 - model.mean) / model.std))


def test_what_a_part_returns_is_checked():
    register("model")(type("Halving", (nn.Conv2d,), {"__init__": lambda s, n: nn.Conv2d.__init__(s, 3, n, 2, 2)}))
    register("loss")(summed)
    with pytest.raises(InputError, match=r"Halving: required logits .* of \(2, 5, 8, 8\), got \(2, 5, 4, 4\)"):
        build_model("Halving", "", 5)(torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"loss.summed must return a scalar tensor, got one of shape \(2, 4, 4\)"):
        build_loss({"summed": 1.0}, 3)(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8))


def summed(logits, target, weight):
    return logits.sum(1)


def test_the_newest_registration_counts_and_shipped_names_are_taken():
    register("loss")(summed)
    again = lambda logits, target, weight: logits.sum()  # noqa: E731
    again.__name__ = "summed"
    register("loss")(again)
    assert find_parts("loss")["summed"].build is again
    again.__name__ = "dice"
    with pytest.raises(InputError, match="required a name of its own, got that of a shipped loss"):
        register("loss")(again)


@pytest.mark.parametrize(
    ("file", "before", "after", "words"),
    [
        ("grid.yaml", "{poly1:", "{poly2:", "unknown loss 'poly2'; did you mean 'poly1'?"),
        (
            "grid.yaml",
            "epsilon: 2.0",
            "epsilom: 2.0",
            "unknown option of loss.poly1 'epsilom'; did you mean 'epsilon'?",
        ),
        ("grid.yaml", "epsilon: 2.0", "epsilon: high", "loss.poly1.epsilon must be a number, got 'high' (a text)"),
        ("grid.yaml", "{TinyNet:", "{TinyNot:", "unknown architecture 'TinyNot'; did you mean 'TinyNet'"),
        ("grid.yaml", "width: 8", "width: 8.5", "architecture.TinyNet.width must be"),
        ("grid.yaml", "{TinyNet: {width: 8}}", "{FPN: {width: 8}}", "architecture FPN takes no options"),
        ("grid.yaml", 'encoder: ""', "encoder: resnet18", "TinyNet has no encoder to choose, got 'resnet18'"),
        ("grid.yaml", "[my_parts.py]", "[other.py]", "`parts`: there is no file 'other.py', neither in"),
        ("grid.yaml", "select_by: missed", "select_by: mised", "unknown select_by 'mised'; did you mean 'missed'"),
        ("grid.yaml", "speckle: {p: 0.3}", "speckel: {p: 0.3}", "unknown transform 'speckel'; did you mean 'speckle'"),
        ("grid.yaml", "speckle: {p: 0.3}", "speckle: {q: 0.3}", "unknown option of augmentation > speckle 'q'"),
        (
            "grid.yaml",
            "by_place: {shift: 1}",
            "by_plaec: {shift: 1}",
            "unknown split 'by_plaec'; did you mean 'by_place'",
        ),
        ("grid.yaml", "{shift: 1}", "{shift: a}", "split.by_place.shift must be a whole number, got 'a'"),
        ("grid.yaml", "{momentum: 0.9}", "{moment: 0.9}", "unknown option of optimizer.plain_sgd 'moment'"),
        (
            "grid.yaml",
            "scheduler: halving",
            "scheduler: halfing",
            "unknown scheduler 'halfing'; did you mean 'halving'",
        ),
        ("grid.yaml", "{every: 2}", "{evry: 2}", "unknown option of scheduler_options.halving 'evry'"),
        ("grid.yaml", "{turn: 0.5}", "{turn: 2}", "mixing.turn must be at most 1.0, got 2"),
        ("grid.yaml", "CountSteps: {", "CountStep: {", "unknown callback 'CountStep'; did you mean 'CountSteps'"),
        ("my_parts.py", "def plain_sgd", "def adamw", "got that of a shipped optimizer; rename yours"),
        ("my_parts.py", "def by_place", "def kfold", "got that of a shipped split; rename yours"),
        ("my_parts.py", "def speckle", "def flips", "got that of a shipped augmentation; rename yours"),
        ("my_parts.py", "def poly1", "def dice", "got that of a shipped loss; rename yours"),
        ("my_parts.py", "class TinyNet", "class FPN", "got that of a shipped model; rename yours"),
        (
            "my_parts.py",
            "target, weight, *",
            "target, *",
            "required the arguments poly1(logits, target, weight, *, ...)",
        ),
        ("my_parts.py", '"loss"', '"lost"', "unknown kind of part 'lost'; did you mean 'loss'"),
        ("my_parts.py", "def poly1(", "def poly1((", "must be Python, got line"),
        ("my_parts.py", "epsilon: float = 1.0", "epsilon: float = 1.0, gamma", "required the option gamma"),
    ],
)
def test_each_mistake_is_one_line_before_the_grid_starts(folder, file, before, after, words):
    change(folder, before, after, file)
    assert words in refusal(folder)


def test_names_that_stand_twice_are_refused(folder):
    (folder / "more.py").write_text(MY_PARTS)
    change(folder, "[my_parts.py]", "[my_parts.py, more.py]", "grid.yaml")
    assert "model 'TinyNet' stands in" in refusal(folder)


def test_parts_are_seen_from_the_grid_file(folder, monkeypatch):
    monkeypatch.chdir("/")
    assert read_grid_file(folder / "grid.yaml").fixed["parts"] == [str(folder / "my_parts.py")]


def test_code_changes_the_key_and_comments_do_not(folder):
    (before,) = load(folder).runs
    change(folder, "# valid pixels", "# the valid pixels only")
    change(folder, '"""Cross entropy + epsilon (1 - p)."""', '"""PolyLoss."""')
    assert load(folder).runs[0].key == before.key
    change(folder, "(1 - log_p.exp())", "(1 - log_p.exp()) ** 2")
    assert load(folder).runs[0].key != before.key
    assert len(hash_parts([folder / "my_parts.py"])) == 1


def test_torch_losses_get_int64_targets():
    model = nn.Conv2d(3, 4, 1)
    optimizer = torch.optim.SGD(model.parameters())
    loss = nn.CrossEntropyLoss(ignore_index=255)
    step = GradientStep(model, optimizer)
    images, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 4, (2, 8, 8), dtype=torch.uint8)
    masks[:, 0] = 255
    value, valid = step.backward(lambda images, targets: loss(model(images), targets), images, masks, 2)
    assert value == pytest.approx(loss(model(images), masks.long()).item()) and valid == 2 * 7 * 8
    assert model.weight.grad.abs().sum() > 0


def register_in_a_cell(folder: Path, name: str) -> None:
    """Move a part of the file to a cell of a copy of the training notebook, above `read_parameters()`."""
    (node,) = [node for node in ast.parse(MY_PARTS).body if getattr(node, "name", "") == name]
    lines = MY_PARTS.splitlines(keepends=True)
    source = "".join(lines[node.decorator_list[0].lineno - 1 : node.end_lineno])
    change(folder, source, "")
    notebook = nbformat.read(PROJECT / "notebooks" / "02_train.ipynb", as_version=4)
    place = next(number for number, cell in enumerate(notebook.cells) if "read_parameters()" in cell.source)
    imports = "import torch\nfrom torch import nn\nfrom seglib import register\n\n\n"
    notebook.cells.insert(place, nbformat.v4.new_code_cell(imports + source))
    nbformat.write(notebook, folder / "own_train.ipynb")
    change(folder, "notebooks/02_train.ipynb", str(folder / "own_train.ipynb"), "grid.yaml")


def test_a_part_of_a_cell_is_checked_before_the_grid_starts(folder):
    register_in_a_cell(folder, "TinyNet")
    (run,) = load(folder).runs
    assert run.parameters["parts"] == [str(folder / "my_parts.py")]  # the cell is run by the notebook itself
    change(folder, "width: 8", "widht: 8", "grid.yaml")
    assert "unknown option of architecture.TinyNet 'widht'; did you mean 'width'" in refusal(folder)
    change(folder, "widht: 8", "width: 8", "grid.yaml")
    change(folder, '    "from torch import nn\\n",\n', "", "own_train.ipynb")
    assert "own_train.ipynb must run as Python, got NameError: name 'nn' is not defined" in refusal(folder)


def test_what_cells_registered_is_kept_the_last_of_each(tmp_path):
    cell = "@register('loss')\ndef zero(logits, target, weight): return {}"
    keep_cells(
        tmp_path,
        ["%matplotlib inline", "import torch\nx = 1", cell.format(0), "from seglib import register", cell.format("x")],
    )
    text = (tmp_path / "parts" / "registered_in_cells.py").read_text()
    assert text.startswith("import torch\nfrom seglib import register\n") and text.count("def zero") == 1
    assert "return x" in text and "x = 1" not in text
    keep_cells(tmp_path / "none", ["x = 1"])
    assert not (tmp_path / "none").exists()


def test_a_grid_of_own_parts_trains_and_opens_again_without_the_file(folder, capsys):
    register_in_a_cell(folder, "TinyNet")
    my_parts = (folder / "my_parts.py").read_text()
    spec = importlib.util.spec_from_file_location("run_grid", PROJECT / "run_grid.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = module.main([str(folder / "grid.yaml"), "--debug", "--outputs", str(folder / "outputs")])
    captured = capsys.readouterr()
    assert code == 0, captured
    (run_dir,) = (path.parent for path in (folder / "outputs").glob("*/*/record.json"))
    record = json.loads((run_dir / "record.json").read_text())
    assert record["params"]["architecture"] == {"TinyNet": {"width": 8}}
    assert record["params"]["loss"] == {"poly1": {"weight": 0.5, "epsilon": 2.0}}
    history, confusion = pd.read_csv(run_dir / "history.csv"), load_confusion(run_dir / "confusion.npz")[0].sum(0)
    assert record["metrics"]["missed"] == confusion[1:, 0].sum() / confusion[1:].sum()
    assert record["best_epochs"]["missed"]["score"] == pytest.approx(history["missed"].min())
    assert record["best_epoch"] == record["best_epochs"]["missed"]["epoch"]
    assert (
        int((run_dir / "count.txt").read_text()) == len(history) * record["train_images"] // 2
    )  # a debug trial has batches of 2
    assert (run_dir / "parts" / "my_parts.py").read_text() == my_parts
    (folder / "my_parts.py").unlink()
    parts._registered.clear()
    run = load_finished_run(run_dir)
    assert type(run.model.network).__name__ == "TinyNet" and run.model.network.first.out_channels == 8
    (run_dir / "parts" / "my_parts.py").unlink()
    parts._registered.clear()
    with pytest.raises(InputError, match=r"parts: required my_parts.py, with which the run was made"):
        load_finished_run(run_dir)


def test_the_readmes_example_works(folder):
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    example = next(block for block in readme.split("```python\n")[1:] if "@register" in block).split("```")[0]
    (folder / "my_parts.py").write_text(example)
    assert [(part.kind, part.name) for part in read_parts([folder / "my_parts.py"])] == [
        ("loss", "poly1"),
        ("model", "TinyNet"),
        ("augmentation", "speckle"),
        ("split", "by_turns"),
    ]
    load_parts([folder / "my_parts.py"])
    steps = build_augmentation(["flips", {"speckle": {"p": 0.3}}], 64).transforms
    assert steps[-1].p == 0.3
    train, val = make_split(
        {"by_turns": {"shift": 1}}, [""] * 10, [None] * 10, None, 5, 0, 1, pd.DataFrame({"file_name": range(10)})
    )
    assert val.tolist() == [4, 9] and sorted([*train, *val]) == list(range(10))
    model = build_model({"TinyNet": {"width": 4}}, "", 3, encoder_weights="").eval()
    images, masks = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.randint(0, 3, (2, 64, 64))
    logits = model(images)
    p = logits.softmax(1).gather(1, masks[:, None])
    expected = (-p.log() + 2 * (1 - p)).mean()
    loss = build_loss({"poly1": {"weight": 0.5, "epsilon": 2.0}}, 3)
    torch.testing.assert_close(loss(logits, masks), 0.5 * expected)
