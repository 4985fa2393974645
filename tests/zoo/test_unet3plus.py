"""UNet 3+: sizes with any kind of encoder, deep supervision, the paper's widths, learning."""

import pytest
import torch
import torch.nn.functional as F

from seglib.zoo.modern import UNet3Plus

SCALES = {"resnet18": 5, "vgg16": 5, "tu-resnet10t": 5, "tu-convnext_atto": 4}


@pytest.mark.parametrize("encoder", SCALES)
def test_every_output_has_the_size_of_the_input(encoder):
    with torch.device("meta"):
        model = UNet3Plus(encoder, encoder_weights=None, classes=5)
        for size in [(32, 32), (64, 64), (96, 64), (96, 96)]:
            outputs = model.train()(torch.empty(2, 3, *size))
            assert [tuple(each.shape) for each in outputs] == [(2, 5, *size)] * SCALES[encoder]
            assert model.eval()(torch.empty(2, 3, *size)).shape == (2, 5, *size)


def test_an_encoder_without_stride_2_gives_four_scales():
    model = UNet3Plus("mit_b0", classes=5)  # computes while it is built, which meta cannot
    outputs = model(torch.rand(2, 3, 64, 96))
    assert [tuple(each.shape) for each in outputs] == [(2, 5, 64, 96)] * 4


def test_an_encoder_of_one_scale_is_refused():
    with pytest.raises(ValueError, match="downsampling pattern"):
        UNet3Plus("tu-vit_tiny_patch16_224", classes=5)


def test_widths_are_the_papers():
    with torch.device("meta"):
        model = UNet3Plus("resnet18", classes=5)
    node = model.nodes["2"]
    # Stage 2 of 5: encoder stages 1 and 2, decoder nodes 3 and 4, and the encoder's deepest map.
    assert [source[0].in_channels for source in node.sources] == [64, 64, 320, 320, 512]
    assert {source[0].out_channels for source in node.sources} == {64}
    assert (node.merge[0].in_channels, node.merge[0].out_channels) == (320, 320)


def test_every_scale_reaches_the_logits():
    model = UNet3Plus("resnet18", classes=3).eval()
    features = [each.detach().requires_grad_() for each in model.encoder(torch.rand(1, 3, 64, 64))]
    model.encoder.forward = lambda images: features
    model(torch.rand(1, 3, 64, 64)).sum().backward()
    assert all(each.grad.any() for each in features[1:])


def test_logits_in_eval_are_the_finest_of_those_in_training():
    model = UNet3Plus("resnet18", classes=3).eval()
    images = torch.rand(1, 3, 64, 64)
    logits = model(images)
    model.training = True  # of the model alone: the batch norms stay as they are
    assert torch.equal(model(images)[0], logits)


def test_autocast_and_channels_last_are_taken():
    images = torch.rand(1, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert UNet3Plus("resnet18", classes=3).eval()(images).isfinite().all()


def test_loss_falls_in_a_few_steps():
    torch.manual_seed(0)
    masks = torch.zeros(2, 32, 32, dtype=torch.long)
    masks[0, :, 16:], masks[1, 16:] = 1, 2
    images = F.one_hot(masks, 3).movedim(-1, 1) + 0.1 * torch.randn(2, 3, 32, 32)
    model = UNet3Plus("tu-resnet10t", classes=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        logits, *auxiliary = model(images)
        loss = F.cross_entropy(logits, masks)
        total = loss + model.auxiliary_weight * sum(F.cross_entropy(each, masks) for each in auxiliary)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
