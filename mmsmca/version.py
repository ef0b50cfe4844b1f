"""The version of mmsmca."""

__version__ = '0.1.0'
