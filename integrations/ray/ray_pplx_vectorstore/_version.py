"""The version of the distribution, read by the build and recorded in every collection."""

__version__ = "0.1.0"
