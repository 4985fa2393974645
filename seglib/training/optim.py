"""Optimizers by name, with a learning rate of the encoder's own and weight decay where it belongs."""

from collections.abc import Iterable

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from seglib.errors import InputError


def build_optimizer(
    name: str,
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    encoder_lr: float = 0.0,
    decay_norms: bool = False,
) -> Optimizer:
    """Build one of timm's optimizers.

    Parameters
    ----------
    name : as timm writes it: adamw, adamp, sgd (Nesterov momentum 0.9), ...
    encoder_lr : learning rate of `model.encoder`; 0 for `lr`.
    decay_norms : whether the weights of norm layers and the biases are decayed too.

    Raises
    ------
    InputError
        An encoder_lr for a model without encoder.
    """
    encoder = getattr(model, "encoder", None)
    if encoder_lr and encoder is None:
        raise InputError(f"encoder_lr must be 0 for a model without an encoder, got {encoder_lr}; leave it out")
    apart = {id(parameter) for parameter in encoder.parameters()} if encoder_lr else set()
    decoder = [parameter for parameter in model.parameters() if id(parameter) not in apart]
    # The decoder first: its learning rate is the one that curves and tables show.
    groups = _split_by_decay(decoder, lr, weight_decay, decay_norms)
    if apart:
        groups += _split_by_decay(encoder.parameters(), encoder_lr, weight_decay, decay_norms)
    return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay, filter_bias_and_bn=False)


def _split_by_decay(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, decay_norms: bool
) -> list[dict]:
    """Parameter groups: norms and biases, which have one dimension at most, are not decayed unless it is asked for."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    plain = [] if decay_norms else [parameter for parameter in trained if parameter.ndim <= 1]
    decayed = [parameter for parameter in trained if decay_norms or parameter.ndim > 1]
    groups = [(decayed, weight_decay), (plain, 0.0)]
    return [{"params": some, "lr": lr, "weight_decay": decay} for some, decay in groups if some]
