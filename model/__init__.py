"""The network, its losses, metrics, recipes, checkpoints and pictures; knows no loader."""

from model.errors import ModelError
from model.unet import DualDecoderUNet, rename_original

__all__ = ["DualDecoderUNet", "ModelError", "rename_original"]
