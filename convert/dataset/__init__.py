"""Makes data sets: composites of foregrounds on backgrounds, with masks and depth maps."""
