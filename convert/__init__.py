"""Files to shards: compose, check, pack, verify, inspect and show a data set. No torch here."""

from convert import kernel_cache

kernel_cache.provide()
