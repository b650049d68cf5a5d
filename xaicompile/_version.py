"""The version, in one place for the package and the metadata of emitted models."""

__version__ = "0.1.0"
