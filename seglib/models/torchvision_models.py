"""torchvision's FCN and DeepLabV3 on dilated ResNets, auxiliary head included."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101, fcn_resnet50, fcn_resnet101

ENCODERS = ("resnet50", "resnet101")
_IMAGENET = {"resnet50": ResNet50_Weights.IMAGENET1K_V1, "resnet101": ResNet101_Weights.IMAGENET1K_V1}


class TorchvisionFCN(nn.Module):
    """FCN head on a ResNet at stride 8; in training mode the logits of layer3's auxiliary head come along.

    Source: `torchvision.models.segmentation.fcn_resnet50` and `fcn_resnet101`; 0.5 is the auxiliary weight of torchvision's
    references/segmentation.

    Parameters
    ----------
    encoder : "resnet50" or "resnet101".
    encoder_weights : "imagenet" (torchvision's, downloaded on first use) or None.
    classes : output channels.
    """

    builders: ClassVar = {"resnet50": fcn_resnet50, "resnet101": fcn_resnet101}
    auxiliary_weight = 0.5

    def __init__(self, encoder: str, encoder_weights: str | None = None, classes: int = 1):
        super().__init__()
        backbone_weights = _IMAGENET[encoder] if encoder_weights else None
        model = self.builders[encoder](
            weights=None, weights_backbone=backbone_weights, num_classes=classes, aux_loss=True, progress=False
        )
        self.encoder = model.backbone
        self.head = model.classifier
        self.auxiliary_head = model.aux_classifier

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) to logits (N, classes, H, W), and in training mode the auxiliary ones."""
        features = self.encoder(images)
        logits = _upsample_to(images, self.head(features["out"]))
        return (logits, _upsample_to(images, self.auxiliary_head(features["aux"]))) if self.training else logits


class TorchvisionDeepLabV3(TorchvisionFCN):
    """DeepLabV3 head (ASPP at rates 12, 24 and 36) on the same encoders, with the same auxiliary head.

    Source: `torchvision.models.segmentation.deeplabv3_resnet50` and `deeplabv3_resnet101`.
    """

    builders: ClassVar = {"resnet50": deeplabv3_resnet50, "resnet101": deeplabv3_resnet101}


def _upsample_to(images: Tensor, scores: Tensor) -> Tensor:
    return F.interpolate(scores, size=images.shape[-2:], mode="bilinear", align_corners=False)
