"""The type of the fixture `shared`, which makes a folder once for all processes of a session.

It takes the folder's name and a function that fills it, and returns the folder.
"""

from collections.abc import Callable
from pathlib import Path

Shared = Callable[[str, Callable[[Path], object]], Path]
