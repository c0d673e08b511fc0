"""What is faster, by how much, and on which machine: measured, never claimed."""

import os

# Before libgomp is loaded. OpenMP threads that wait for each other spin; where others use the
# same cores, that made every loader here up to 50 times slower. Sleeping threads cost nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if __name__ == "benchmarks":  # the old name
    from maskdepth.old_names import redirect

    redirect(__name__)
