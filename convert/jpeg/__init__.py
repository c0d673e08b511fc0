"""JPEG as bytes: what a header says, and decoding that checks every return code."""

from convert.jpeg.header import JpegHeader, read_header
from convert.jpeg.pixels import decode_gray, decode_rgb, kept_pixels

__all__ = ["JpegHeader", "decode_gray", "decode_rgb", "kept_pixels", "read_header"]
