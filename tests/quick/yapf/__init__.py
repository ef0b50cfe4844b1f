"""In the place of yapf: MMEngine's configs are left as they are.

Every run writes its config several times, and formatting takes longer than the steps of a test.
"""

__version__ = '0.43.0'
