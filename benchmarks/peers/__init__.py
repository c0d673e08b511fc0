"""The same job with what one would use otherwise, each library in its own module."""
