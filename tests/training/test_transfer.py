"""A model starts from a finished run's weights, whole where the classes are the same."""

import pytest
import torch

from seglib.errors import InputError
from seglib.models import build_model
from seglib.training.checkpoint import hash_weights, load_from_run

RECIPE = {"architecture": "Linknet", "encoder": "tu-test_resnet", "num_classes": 3, "image_size": 64}
NAMES = ["Background", "a", "b"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(1)
    model = build_model(**RECIPE)
    torch.save({"model": model.state_dict(), "class_names": NAMES, **RECIPE}, folder / "best.pt")
    return folder, model.state_dict()


def test_the_same_classes_take_every_weight(source):
    folder, weights = source
    model = build_model(**RECIPE)
    load_from_run(model, folder, NAMES)
    assert hash_weights(model.state_dict()) == hash_weights(weights)


@pytest.mark.parametrize("names", [["Background", "a"], ["Background", "a", "c"]], ids=["fewer", "others"])
def test_other_classes_take_all_but_the_layers_that_tell_them_apart(source, names, capsys):
    folder, weights = source
    recipe = RECIPE | {"num_classes": len(names)}
    model = build_model(**recipe)
    fresh = {name: weight.clone() for name, weight in model.state_dict().items()}
    load_from_run(model, folder, names)
    heads = ("network.segmentation_head.0.weight", "network.segmentation_head.0.bias")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, fresh[name] if name in heads else weights[name]), name
    assert (
        "2 tensors begin again, because the classes are others: network.segmentation_head.0.bias"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "recipe, words",
    [
        (RECIPE | {"architecture": "FPN"}, "required architecture FPN, got Linknet; take a run of the same model"),
        (RECIPE | {"encoder": "resnet18"}, "required encoder resnet18, got tu-test_resnet"),
    ],
)
def test_another_model_is_refused_by_name(source, recipe, words):
    with pytest.raises(InputError, match=words):
        load_from_run(build_model(**recipe), source[0], NAMES)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(InputError, match=r"best\.pt: there is no such checkpoint"):
        load_from_run(build_model(**RECIPE), tmp_path, NAMES)
