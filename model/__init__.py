"""Network, losses, metrics, recipes, checkpoints and pictures; independent of the loaders."""

from maskdepth.model.errors import ModelError
from maskdepth.model.unet import DualDecoderUNet, rename_original

__all__ = ["DualDecoderUNet", "ModelError", "rename_original"]

if __name__ == "model":  # the old name
    from maskdepth.old_names import redirect

    redirect(__name__)
