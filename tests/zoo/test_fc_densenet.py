"""FC-DenseNet: sizes, the paper's parameter counts and layer table, what goes up, learning."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seglib.errors import InputError
from seglib.zoo.modern import FCDenseNet56, FCDenseNet67, FCDenseNet103

FC_DENSENETS = {model.__name__: model for model in (FCDenseNet56, FCDenseNet67, FCDenseNet103)}


@pytest.mark.parametrize("name", FC_DENSENETS)
@pytest.mark.parametrize("training", [False, True])
def test_logits_have_the_size_of_the_input(name, training):
    with torch.device("meta"):
        model = FC_DENSENETS[name]("", encoder_weights=None, classes=5).train(training)
        for size in [(32, 32), (64, 64), (96, 64), (96, 96)]:
            assert model(torch.empty(2, 3, *size)).shape == (2, 5, *size)


def count_from_the_papers_tables(growth, down, bottleneck, classes=12):
    """Weights, biases and batch norms, summed over the paper's tables 1 and 2: (trainable, running statistics)."""
    layers = [(3, 48, 9)]  # (channels in, channels out, kernel area)
    normed = []  # channels of each batch norm

    def dense_block(channels, number):
        for k in range(number):
            normed.append(channels + k * growth)
            layers.append((channels + k * growth, growth, 9))
        return channels + number * growth

    channels, skips = 48, []
    for number in down:
        channels = dense_block(channels, number)
        skips.append(channels)
        normed.append(channels)
        layers.append((channels, channels, 1))  # transition down
    dense_block(channels, bottleneck)
    up = bottleneck * growth
    for number, skip in zip(down[::-1], skips[::-1], strict=True):
        layers.append((up, up, 9))  # transition up
        channels, up = dense_block(up + skip, number), number * growth
    layers.append((channels, classes, 1))
    statistics = 2 * sum(normed)
    return sum(a * b * area + b for a, b, area in layers) + statistics, statistics


# The paper's millions are what Lasagne counts, running means and variances included: 3.46 + 0.04 and 9.32 + 0.10. For
# FC-DenseNet56 its own tables give 1.38 + 0.02; no reading of them gives 1.5 without leaving 3.5 and 9.4.
@pytest.mark.parametrize("name, growth, down, bottleneck, millions", [
    ("FCDenseNet56", 12, [4, 4, 4, 4, 4], 4, 1.4),
    ("FCDenseNet67", 16, [5, 5, 5, 5, 5], 5, 3.5),
    ("FCDenseNet103", 16, [4, 5, 7, 10, 12], 15, 9.4),
])  # fmt: skip
def test_parameter_count_is_the_papers(name, growth, down, bottleneck, millions):
    with torch.device("meta"):
        model = FC_DENSENETS[name](classes=12)
    trainable, statistics = count_from_the_papers_tables(growth, down, bottleneck)
    assert sum(value.numel() for value in model.parameters()) == trainable
    assert round((trainable + statistics) / 1e6, 1) == millions


@pytest.mark.parametrize("name, number", [("FCDenseNet56", 56), ("FCDenseNet67", 67), ("FCDenseNet103", 103)])
def test_name_says_how_many_convolutions_there_are(name, number):
    with torch.device("meta"):
        modules = FC_DENSENETS[name](classes=12).modules()
    assert sum(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in modules) == number


def test_channels_of_the_103_layers_are_the_papers():
    with torch.device("meta"):
        model = FCDenseNet103(classes=12)
    down = [transition[2].out_channels for transition in model.downs]
    up = [block.layers[0][0].num_features + len(block.layers) * 16 for block in model.up_blocks]
    assert (down, up) == ([112, 192, 304, 464, 656], [1088, 816, 576, 384, 256])


def test_weights_start_he_uniform():
    torch.manual_seed(0)
    conv = FCDenseNet56(classes=12).bottleneck.layers[3][2]
    fan_in = conv.weight[0].numel()
    assert conv.weight.abs().max() <= (6 / fan_in) ** 0.5
    assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert not conv.bias.any()


def test_an_encoder_and_its_weights_are_refused():
    with pytest.raises(
        InputError, match="encoder: FCDenseNet56 has no exchangeable encoder, got 'resnet18'; write encoder"
    ):
        FCDenseNet56("resnet18", classes=3)
    with pytest.raises(InputError, match="encoder_weights: FCDenseNet56 has none, got 'imagenet'"):
        FCDenseNet56("", encoder_weights="imagenet", classes=3)


def test_loss_falls_in_a_few_steps():
    torch.manual_seed(0)
    masks = torch.zeros(2, 32, 32, dtype=torch.long)
    masks[0, :, 16:], masks[1, 16:] = 1, 2
    images = F.one_hot(masks, 3).movedim(-1, 1) + 0.1 * torch.randn(2, 3, 32, 32)
    model = FCDenseNet56(classes=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(images.to(memory_format=torch.channels_last)), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_autocast_is_taken():
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = FCDenseNet56(classes=3).eval()(torch.rand(1, 3, 64, 64))
    assert logits.isfinite().all()
