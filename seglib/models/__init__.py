"""Models by name: `build_model(architecture, encoder, num_classes, encoder_weights, image_size)`."""

from seglib.models.build import SegmentationModel, build_model

__all__ = ["SegmentationModel", "build_model"]
