"""Models are built by name, or refused in one line, and normalise their own input."""

from urllib.error import URLError

import pytest
import torch

from seglib.errors import InputError
from seglib.models import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD, OWN_ENCODERS, build_model


@pytest.mark.parametrize(
    "architecture, encoder", [("FPN", "resnet18"), ("Unet", "tu-resnet10t"), ("Linknet", "mobilenet_v2")]
)
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
        ("UPerNet", "tu-test_vit", "UPerNet needs feature maps at several scales.*DPT takes plain transformers"),
        ("FPN", "tu-resnet18.a1_im1k", "unknown encoder .*; did you mean 'tu-resnet18.a1_in1k'"),
        ("FPN", "", 'FPN needs an encoder, got ""; write one, such as encoder: resnet34'),
        ("UNet3Plus", "", 'UNet3Plus needs an encoder, got ""'),
        ("FCN8", "vgg16", "unknown architecture 'FCN8'; did you mean 'FCN8s'"),
        ("FCN8s", "resnet50", "^FCN8s takes encoder 'vgg16', got 'resnet50'$"),
        ("HRNet", "resnet50", "HRNet takes encoder 'tu-hrnet_w18', .* or 'tu-hrnet_w64', got 'resnet50'"),
        ("TorchvisionFCN", "resnet18", "TorchvisionFCN takes encoder 'resnet50' or 'resnet101', got 'resnet18'"),
        ("FCDenseNet56", "resnet18", "FCDenseNet56 has no encoder to choose, got 'resnet18'; write encoder: \"\""),
    ],
)
def test_a_pair_that_cannot_be_built_is_refused_in_one_line(architecture, encoder, words):
    with pytest.raises(InputError, match=words) as caught:
        build_model(architecture, encoder, num_classes=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoder_weights", ["imagenet", "weights.pth"])
def test_weights_without_an_encoder_to_load_into_are_refused(encoder_weights):
    with pytest.raises(
        InputError, match=f"no encoder to load into, got '{encoder_weights}'; write encoder_weights: \"\""
    ):
        build_model("FCDenseNet56", "", num_classes=3, encoder_weights=encoder_weights)


@pytest.mark.parametrize("architecture", ["UNet3Plus", "HRNetOCR", "TorchvisionFCN", "TorchvisionDeepLabV3"])
def test_auxiliary_logits_come_in_training_and_never_in_evaluation(architecture):
    encoder = OWN_ENCODERS.get(architecture, ["resnet18"])[0]
    with torch.device("meta"):
        model, images = build_model(architecture, encoder, num_classes=5), torch.empty(2, 3, 64, 96)
        outputs = model.train()(images)
        logits = model.eval()(images)
    assert len(outputs) > 1 and model.auxiliary_weight > 0
    assert {tuple(output.shape) for output in (*outputs, logits)} == {(2, 5, 64, 96)}


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "DPT"])
def test_every_architecture_keeps_the_size_and_tells_its_encoder_and_auxiliary_weight(architecture):
    encoder = OWN_ENCODERS.get(architecture, ["resnet18"])[0]
    with torch.device("meta"):
        model = build_model(architecture, encoder, num_classes=5)
        output = model.train()(torch.empty(2, 3, 128, 160))
    assert (model.auxiliary_weight > 0) == isinstance(output, tuple)
    assert (model.encoder is None) == (encoder == "")
    if encoder:
        inside = {id(parameter) for parameter in model.encoder.parameters()}
        assert inside < {id(parameter) for parameter in model.parameters()}
    assert (output[0] if isinstance(output, tuple) else output).shape == (2, 5, 128, 160)


@pytest.mark.parametrize(
    ("architecture", "encoder", "image_size"),
    [
        ("DPT", "tu-beit_base_patch16_224", 64),
        ("DPT", "tu-beit_base_patch16_224", 512),
        ("DPT", "tu-test_vit", 96),
        ("UPerNet", "tu-swin_tiny_patch4_window7_224", 96),
    ],
)
def test_transformers_are_built_for_the_image_size(architecture, encoder, image_size):
    with torch.device("meta"):
        model = build_model(architecture, encoder, num_classes=3, image_size=image_size)
        assert model(torch.empty(2, 3, image_size, image_size)).shape == (2, 3, image_size, image_size)


def test_a_transformer_trains_at_another_size_than_its_own():
    model = build_model("DPT", "tu-test_vit", num_classes=3, image_size=64)
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    position_embeddings = model.encoder.model.pos_embed
    assert position_embeddings.grad.abs().sum() > 0


def test_downloads_of_torchvision_that_fail_name_the_two_ways_out(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    for architecture, encoder in [("TorchvisionFCN", "resnet50"), ("FCN8s", "vgg16")]:
        with pytest.raises(
            InputError, match=f"{architecture}: .*service not known.*two ways out: .* encoder_weights: PATH"
        ):
            build_model(architecture, encoder, num_classes=3, encoder_weights="imagenet")


def test_weights_that_cannot_be_downloaded_name_the_two_ways_out(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", fail)
    with pytest.raises(
        InputError, match=r'no route to host.*two ways out: encoder_weights: "" .* encoder_weights: PATH'
    ):
        build_model("FPN", "resnet18", num_classes=3, encoder_weights="imagenet")


def test_a_pair_that_cannot_be_built_is_refused_before_weights_are_downloaded():
    with pytest.raises(InputError, match="cannot be dilated"):
        build_model("DeepLabV3", "vgg16", num_classes=3, encoder_weights="imagenet")
