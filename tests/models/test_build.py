"""Models are built by name, normalise their own input, and load an encoder's weights from disk."""

import pytest
import timm
import torch

from seglib.errors import InputError
from seglib.models import build_model
from seglib.models.build import IMAGENET_MEAN, IMAGENET_STD


@pytest.mark.parametrize("architecture, encoder", [("FPN", "resnet18"), ("Unet", "tu-resnet10t"), ("Linknet", "mobilenet_v2")])
def test_logits_have_the_size_of_the_input(architecture, encoder):
    model = build_model(architecture, encoder, num_classes=5).eval()
    assert model(torch.rand(2, 3, 64, 96)).shape == (2, 5, 64, 96)


def test_uint8_images_are_normalised_once_and_floats_are_left_alone():
    model = build_model("FPN", "resnet18", num_classes=3).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.equal(model(images), model.network((images / 255 - mean) / std))
    floats = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(floats), model.network(floats))


def test_normalisation_travels_with_the_weights():
    trained, rebuilt = (build_model("FPN", "tu-resnet10t", num_classes=3) for _ in range(2))
    trained.mean.fill_(0.5)  # as Inception's weights want it
    rebuilt.load_state_dict(trained.state_dict())
    assert rebuilt.mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "architecture, encoder, words",
    [
        ("FNP", "resnet18", "unknown architecture 'FNP'; did you mean 'FPN'"),
        ("FPN", "resnet19", "unknown encoder 'resnet19'; did you mean"),
        ("FPN", "tu-resnet10x", "unknown encoder 'tu-resnet10x'; did you mean 'tu-resnet10t'"),
        ("DeepLabV3Plus", "densenet121", "encoder 'densenet121' cannot be dilated, which DeepLabV3Plus needs"),
        ("PAN", "tu-hrnet_w18", "encoder 'tu-hrnet_w18' cannot be dilated, which PAN needs"),
        ("UnetPlusPlus", "mit_b0", "UnetPlusPlus does not take the encoders mit_b0 to mit_b5"),
        ("DPT", "resnet18", "DPT takes timm's transformers only"),
    ],
)
def test_a_pair_that_cannot_be_built_is_refused_in_one_line(architecture, encoder, words):
    with pytest.raises(InputError, match=words) as caught:
        build_model(architecture, encoder, num_classes=3)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_downloaded_name_the_two_ways_out(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", fail)
    with pytest.raises(InputError, match=r'no route to host.*two ways out: encoder_weights: "" .* encoder_weights: PATH'):
        build_model("FPN", "resnet18", num_classes=3, encoder_weights="imagenet")


def test_a_pair_that_cannot_be_built_is_refused_before_weights_are_downloaded():
    with pytest.raises(InputError, match="cannot be dilated"):
        build_model("DeepLabV3", "vgg16", num_classes=3, encoder_weights="imagenet")


@pytest.mark.parametrize("layout", ["smp", "smp model", "with classifier"])
def test_encoder_weights_come_from_a_local_file(tmp_path, layout):
    source = build_model("Unet", "resnet18", num_classes=7)
    weights = source.network.encoder.state_dict()
    if layout == "smp model":
        weights = source.network.state_dict()
    if layout == "with classifier":
        weights |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(weights, tmp_path / "weights.pth")
    model = build_model("FPN", "resnet18", num_classes=3, encoder_weights=str(tmp_path / "weights.pth"))
    expected = source.network.encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.network.encoder.state_dict().items())


def test_timm_weights_fit_a_timm_encoder(tmp_path):
    source = timm.create_model("resnet10t")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = build_model("FPN", "tu-resnet10t", num_classes=3, encoder_weights=str(tmp_path / "weights.pth"))
    assert torch.equal(model.network.encoder.state_dict()["model.conv1.0.weight"], source.state_dict()["conv1.0.weight"])


def test_weights_of_another_encoder_are_refused(tmp_path):
    torch.save(build_model("FPN", "resnet34", num_classes=3).network.encoder.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"required the 312 weights of this encoder, got 0 that fit .* another encoder"):
        build_model("FPN", "mobilenet_v2", num_classes=3, encoder_weights=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02cos\nsystem\n"])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(InputError, match="required a state dict file, got"):
        build_model("FPN", "resnet18", num_classes=3, encoder_weights=str(tmp_path / "weights.pth"))
