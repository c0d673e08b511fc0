"""What is faster, by how much, and on which machine: measured, never claimed."""
