"""The built-in data: streets with their true depth, and people to put into them."""

from convert.dataset.scenes.draw import FAR_M, Scene, draw_background, draw_person, ground_depth

__all__ = ["FAR_M", "Scene", "draw_background", "draw_person", "ground_depth"]
