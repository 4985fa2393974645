"""Weights of encoders come from local files in all the layouts that are about, and bring their normalisation."""

import re

import pytest
import timm
import torch
import torchvision

from seglib.errors import InputError
from seglib.models import IMAGENET_MEAN, IMAGENET_STD, build_model, find_normalisation, load_encoder_weights


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
    assert torch.equal(
        model.network.encoder.state_dict()["model.conv1.0.weight"], source.state_dict()["conv1.0.weight"]
    )


def test_weights_of_another_encoder_are_refused(tmp_path):
    torch.save(build_model("FPN", "resnet34", num_classes=3).network.encoder.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        InputError, match=r"required the 312 weights of this encoder, got 0 that fit; .* is of another encoder$"
    ):
        build_model("FPN", "mobilenet_v2", num_classes=3, encoder_weights=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02cos\nsystem\n"])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(InputError, match="required a state dict file, got"):
        build_model("FPN", "resnet18", num_classes=3, encoder_weights=str(tmp_path / "weights.pth"))


def randomise(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.02)
    return network


@pytest.mark.parametrize(
    ("architecture", "encoder", "source", "key"),
    [
        ("TorchvisionFCN", "resnet50", lambda: torchvision.models.resnet50(), "layer4.2.conv3.weight"),
        (
            "HRNet",
            "tu-hrnet_w18_small",
            lambda: timm.create_model("hrnet_w18_small"),
            "stage4.0.branches.3.1.conv2.weight",
        ),
        ("DeepLabV1", "vgg16", lambda: torchvision.models.vgg16(), "features.28.weight"),
        ("FPN", "tu-convnext_atto", lambda: timm.create_model("convnext_atto"), "stages.3.blocks.1.mlp.fc2.weight"),
    ],
)
def test_files_of_the_libraries_load_into_the_encoder(tmp_path, architecture, encoder, source, key):
    weights = randomise(source()).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    model = build_model(architecture, encoder, num_classes=3, encoder_weights=str(tmp_path / "weights.pth"))
    loaded = dict(model.encoder.named_parameters())
    found = next(value for name, value in loaded.items() if name.replace("_", ".").endswith(key.replace("_", ".")))
    assert torch.equal(found, weights[key])


@pytest.mark.parametrize(
    ("architecture", "name", "size", "key"),
    [
        ("DPT", "test_vit", 96, "pos_embed"),
        ("UPerNet", "swin_tiny_patch4_window7_224", 64, "layers.3.blocks.0.attn.relative_position_bias_table"),
    ],
)
def test_weights_of_another_image_size_are_resampled_as_timm_does(tmp_path, architecture, name, size, key):
    weights = randomise(timm.create_model(name)).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    model = build_model(architecture, f"tu-{name}", 3, str(tmp_path / "weights.pth"), image_size=size)
    reference = timm.create_model(name)
    reference.load_state_dict(weights)
    reference.set_input_size(img_size=(size, size))
    loaded = model.encoder.state_dict()
    found = next(value for own, value in loaded.items() if own.replace("_", ".").endswith(key.replace("_", ".")))
    assert found.shape != weights[key].shape
    torch.testing.assert_close(found, reference.state_dict()[key])


def test_weights_of_beit_at_another_size_get_their_bias_tables_resampled(tmp_path):
    arguments = {"embed_dim": 32, "depth": 4, "num_heads": 2}
    weights = randomise(timm.create_model("beit_base_patch16_224", **arguments)).state_dict()
    encoder = timm.create_model("beit_base_patch16_224", img_size=96, num_classes=0, **arguments)
    torch.save(weights, tmp_path / "weights.pth")
    load_encoder_weights(encoder, tmp_path / "weights.pth")
    reference = timm.create_model("beit_base_patch16_224", **arguments)
    reference.load_state_dict(weights)
    reference.set_input_size(img_size=(96, 96))
    images = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(encoder.eval().forward_features(images), reference.eval().forward_features(images))


def test_position_embeddings_that_cannot_be_resampled_are_refused(tmp_path):
    weights = timm.create_model("test_vit").state_dict()
    weights["pos_embed"] = weights["pos_embed"][:, :-1]  # no square grid
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(
        InputError, match=r"1 of another shape \(such as model.pos_embed: .* another encoder or image_size"
    ):
        build_model("DPT", "tu-test_vit", 3, str(tmp_path / "weights.pth"), image_size=96)


def test_weights_of_a_timm_encoder_bring_its_normalisation(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    model = build_model("DPT", "tu-test_vit", 3, str(tmp_path / "weights.pth"))
    assert model.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    untrained = build_model("DPT", "tu-test_vit", 3)
    assert untrained.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)


def test_files_from_before_batch_norms_counted_their_batches_load_too(tmp_path):
    source = build_model("SegNet", "vgg16", num_classes=3).encoder.state_dict()
    torch.save({name: value for name, value in source.items() if "num_batches" not in name}, tmp_path / "old.pth")
    model = build_model("SegNet", "vgg16", num_classes=3, encoder_weights=str(tmp_path / "old.pth"))
    assert all(torch.equal(value, source[name]) for name, value in model.encoder.state_dict().items())


def test_old_names_of_densenets_and_of_parallel_training_are_read(tmp_path):
    source = build_model("FPN", "densenet121", num_classes=3).encoder.state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", name): value for name, value in source.items()}
    parallel = {f"module.{name}": value for name, value in source.items()}
    assert old.keys() != source.keys()
    for number, weights in enumerate((old, parallel)):
        torch.save(weights, tmp_path / f"{number}.pth")
        model = build_model("FPN", "densenet121", num_classes=3, encoder_weights=str(tmp_path / f"{number}.pth"))
        assert all(torch.equal(value, source[name]) for name, value in model.encoder.state_dict().items())


def test_inceptions_want_their_images_in_minus_one_to_one(tmp_path):
    assert find_normalisation("Unet", "xception", str(tmp_path / "x.pth")) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert find_normalisation("Unet", "resnet18", str(tmp_path / "x.pth")) == (IMAGENET_MEAN, IMAGENET_STD)
