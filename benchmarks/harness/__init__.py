"""What the benchmark commands share: contenders, timing, resources, machine and results."""
