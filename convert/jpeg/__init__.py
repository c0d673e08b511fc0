"""Reads headers of JPEG files and decodes them; a warning of the decoder is an error."""

from maskdepth.convert.jpeg.header import JpegHeader, read_header
from maskdepth.convert.jpeg.pixels import decode_gray, decode_rgb, kept_pixels

__all__ = ["JpegHeader", "decode_gray", "decode_rgb", "kept_pixels", "read_header"]
