"""Trained networks on photos: prediction, export, and the registration of two photos."""
