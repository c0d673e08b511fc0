"""Network, losses, metrics, recipes, checkpoints and pictures; independent of the loaders."""

from model.errors import ModelError
from model.unet import DualDecoderUNet, rename_original

__all__ = ["DualDecoderUNet", "ModelError", "rename_original"]
