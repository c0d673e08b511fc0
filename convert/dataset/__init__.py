"""Makes data sets: composites of people on backgrounds, with masks and depth maps."""
