import json
import re
import subprocess
import sys

import pytest

from seglib.errors import InputError
from seglib.files import PROJECT, cache_dir
from seglib.models.__main__ import list_models
from seglib.models.architectures import ARCHITECTURES, OWN_ENCODERS
from seglib.models.trial import find_refusal
from seglib.runs import preflight
from seglib.runs.preflight import TABLE, find_model_refusals, installed_versions


def model(architecture, encoder, image_size=128, batch_size=2):
    return {"architecture": architecture, "encoder": encoder, "image_size": image_size, "batch_size": batch_size}


@pytest.fixture
def no_child(monkeypatch):
    monkeypatch.setattr(
        preflight, "_run_child", lambda module, models: pytest.fail(f"a child was asked about {models}")
    )


@pytest.fixture
def count_children(monkeypatch, tmp_path):
    """No answers remembered; returns the list of what children are asked."""
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path / "cache"))
    asked = []

    def answer(module, models):
        asked.extend(models)
        return [f"no {item['encoder']}" for item in models]

    monkeypatch.setattr(preflight, "_run_child", answer)
    return asked


def test_the_table_is_of_the_installed_versions_and_knows_all_architectures():
    table = json.loads(TABLE.read_text())
    assert table["versions"] == installed_versions() and table["architectures"] == [*ARCHITECTURES]
    assert table["own_encoders"] == {name: list(encoders) for name, encoders in OWN_ENCODERS.items()}


@pytest.mark.parametrize(
    "asked",
    [
        model("FPN", "resnet18", 32),
        model("Unet", "mit_b0"),
        model("UnetPlusPlus", "mit_b0"),
        model("DeepLabV3Plus", "densenet121"),
        model("DeepLabV3Plus", "resnet18", 64, 1),
        model("PAN", "vgg11"),
        model("PAN", "resnet18", 64),
        model("PAN", "resnet18", 128),
        model("Linknet", "xception"),
        model("PSPNet", "mobilenet_v2", 32),
        model("UPerNet", "resnet18", 128, 1),
        model("DPT", "resnet18"),
        model("Segformer", "efficientnet-b0", 96),
        model("FPN", ""),
        model("UNet3Plus", "mit_b0", 96),
        model("HRNet", "tu-hrnet_w18", 32),
        model("HRNet", "resnet50"),
        model("HRNetOCR", "tu-hrnet_w18_small", 64, 1),
        model("TorchvisionFCN", "resnet50", 64, 1),
        model("TorchvisionDeepLabV3", "resnet101", 64, 1),
        model("TorchvisionDeepLabV3", "resnet18"),
        model("FCN8s", "vgg16", 32),
        model("DeconvNet", "vgg16", 64),
        model("SegNet", "vgg16_bn"),
        model("FCDenseNet56", "", 64),
        model("FCDenseNet56", "resnet18"),
    ],
    ids=lambda asked: "-".join(map(str, asked.values())),
)
def test_the_table_says_what_building_the_model_says(asked, no_child):
    table, built = find_model_refusals([asked])[0], find_refusal(**asked)
    assert bool(table) == bool(built), (table, built)
    assert "\n" not in table


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            model("DeepLabV3Plus", "densenet121"),
            "encoder 'densenet121' cannot be dilated, which DeepLabV3Plus needs; architectures that take it: Unet",
        ),
        (model("Unet++", "resnet18"), "unknown architecture 'Unet++'; did you mean 'Unet'"),
        (model("FPN", "resnet81"), "unknown encoder 'resnet81'; did you mean 'resnet18'"),
        (model("FCN8s", "resnet50"), "FCN8s takes encoder 'vgg16', got 'resnet50'"),
        (model("HRNet", "resnet50"), "HRNet takes encoder 'tu-hrnet_w18', 'tu-hrnet_w18_small', "),
        (
            model("FCDenseNet67", "resnet18"),
            "FCDenseNet67 has no encoder to choose, got 'resnet18'; write encoder: \"\"",
        ),
        (model("FPN", ""), 'FPN needs an encoder, got ""; write one, such as encoder: resnet34'),
        (model("PAN", "resnet18", 64), "PAN needs an image_size of at least 128, got 64"),
        (
            model("DeepLabV3", "resnet18", 128, 1),
            "DeepLabV3 pools to one pixel in front of a batch norm: batch_size must be at least 2",
        ),
    ],
)
def test_a_refusal_says_why_and_what_works(asked, words, no_child):
    sound, refusal = find_model_refusals([model("FPN", "resnet18"), asked])
    assert sound == "" and refusal.startswith(words)


def test_a_batch_of_one_is_tried_for_the_encoder_too(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    sound, refused = find_model_refusals([model("FPN", "resnet18", 64, 1), model("Unet", "timm-skresnet18", 128, 1)])
    assert sound == ""
    assert "batch_size must be at least 2, got 1" in refused


def test_encoders_of_timm_are_built_in_a_child_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    asked = [
        model("FPN", "tu-resnet10t"),
        model("FPN", "resnet18"),
        model("FPN", "tu-resnet10x"),
        model("PAN", "tu-resnet10t", 64),
    ]
    answers = find_model_refusals(asked)
    assert answers[:2] == ["", ""] and answers[2].startswith(
        "unknown encoder 'tu-resnet10x'; did you mean 'tu-resnet10t'"
    )
    assert answers[3] != ""
    monkeypatch.setattr(preflight, "_run_child", lambda module, models: pytest.fail("asked twice"))
    assert find_model_refusals(asked) == answers


def test_one_image_of_32_px_is_for_the_child_to_judge(count_children):
    assert find_model_refusals([model("FPN", "resnet18", 32, 1), model("FPN", "resnet18", 32, 2)]) == [
        "no resnet18",
        "",
    ]


def test_with_other_versions_the_child_is_asked_again(count_children, monkeypatch):
    asked = [model("FPN", "resnet18"), model("FPN", "tu-resnet10t")]
    find_model_refusals(asked)
    versions = {"segmentation-models-pytorch": "9.9.9", "timm": "9.9"}
    monkeypatch.setattr(preflight, "installed_versions", lambda: versions)
    preflight._load_table.cache_clear()
    try:
        assert find_model_refusals(asked) == ["no resnet18", "no tu-resnet10t"]
    finally:
        monkeypatch.undo()
        preflight._load_table.cache_clear()
    assert count_children == [asked[1], *asked]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', ""])
def test_damaged_answers_are_asked_for_again(count_children, content):
    asked = [model("FPN", "tu-resnet10t")]
    find_model_refusals(asked)
    find_model_refusals(asked)
    assert len(count_children) == 1
    (cache_dir() / "seglib.models.json").write_text(content)
    assert find_model_refusals(asked) == ["no tu-resnet10t"] and len(count_children) == 2


def test_four_processes_at_once_get_their_answers_and_leave_a_whole_file(tmp_path, monkeypatch):
    script = (
        "import sys\nfrom seglib.runs import preflight\n"
        "preflight._run_child = lambda module, models: [item['encoder'] for item in models]\n"
        "for number in range(40):\n"
        "    name = f'tu-{sys.argv[1]}-{number}'\n"
        "    asked = {'architecture': 'FPN', 'encoder': name, 'image_size': 64, 'batch_size': 2}\n"
        "    assert preflight.find_model_refusals([asked]) == [name]"
    )
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    children = [subprocess.Popen([sys.executable, "-c", script, str(number)], cwd=PROJECT) for number in range(4)]
    assert [child.wait() for child in children] == [0, 0, 0, 0]
    assert len(json.loads((tmp_path / "seglib.models.json").read_text())) >= 40
    assert [path.name for path in tmp_path.iterdir()] == ["seglib.models.json"]


def test_a_child_that_fails_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(preflight, "PROJECT", tmp_path)
    (tmp_path / "seglib").mkdir()
    (tmp_path / "seglib" / "__init__.py").write_text("raise ImportError('no torch here')")
    with pytest.raises(InputError, match="--check` could not run: ImportError: no torch here") as caught:
        find_model_refusals([model("FPN", "tu-resnet10t")])
    assert "\n" not in str(caught.value)


def test_an_architecture_without_listed_pairs_says_what_it_takes(capsys):
    list_models("DPT")
    assert "DPT takes encoders of timm only" in capsys.readouterr().out


def test_models_are_listed_with_their_size(capsys):
    list_models("densenet121")
    listed = capsys.readouterr().out
    assert re.search(r"^FPN +densenet121 +9\.\d\d M$", listed, re.M) and "DeepLabV3" not in listed
    list_models("FCDenseNet56")
    assert re.search(r"^FCDenseNet56 +- +1\.\d\d M$", capsys.readouterr().out, re.M)
    list_models("tu-hrnet_w48")
    assert re.search(r"^HRNet +tu-hrnet_w48 +65\.\d\d M\nHRNetOCR ", capsys.readouterr().out, re.M)
    with pytest.raises(InputError, match="unknown architecture or encoder 'resnet81'; did you mean 'resnet18'"):
        list_models("resnet81")
