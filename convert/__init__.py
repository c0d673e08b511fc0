"""Files to shards: compose, check, pack, verify, inspect and show a data set. No torch here."""

from maskdepth.convert import kernel_cache

kernel_cache.provide()

if __name__ == "convert":  # the old name
    from maskdepth.old_names import redirect

    redirect(__name__)
