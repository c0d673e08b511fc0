"""The built-in data: streets with their true depth, and people to paste on them.

``draw_background`` and ``draw_person`` draw picture ``index`` of a seed. A picture depends on
these two numbers alone.
"""

from maskdepth.convert.dataset.scenes.draw import FAR_M, Scene, draw_background, ground_depth
from maskdepth.convert.dataset.scenes.people import draw_person

__all__ = ["FAR_M", "Scene", "draw_background", "draw_person", "ground_depth"]
