"""Fast shards of composites, loaders and training; `maskdepth.loaders` is where to start.

In a checkout the packages are folders of the repository, to which links lead from here.
"""

__version__ = "0.2.0.dev0"
