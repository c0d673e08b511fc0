"""What a training run reads and writes: configuration, progress, evaluation and reports."""
