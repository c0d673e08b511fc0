"""What the benchmark commands share: contenders, timing, resources and results."""
