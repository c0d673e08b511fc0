"""Limits of options that several layers check: far above what is useful, and below what is harmful.

They turn a slip of the keyboard into a message, before memory or threads are taken for it.
"""

LARGEST_BATCH = 2**16
"""Samples of a batch: at 224 pixels their fg_bg alone are 10 GB."""
LARGEST_SIDE = 13_377
"""Height and width of a composite: its square is below the 179 million pixels that are read."""
MOST_ROWS = 1000
"""Samples of a contact sheet: at 224 pixels it is 700 MB in memory."""
MOST_WORKERS = 4096
"""Threads or processes: more than any machine has cores, and Linux allows a process some 32,000."""
