"""Every error a user can meet, each one sentence: what, where, got, expected, what to do.

    SaniError                  exit code 1
    ├── UsageError             options that do not go together; exit code 2
    ├── RecipeError            a recipe that cannot be read or does not make sense
    ├── CorpusError            documents that cannot be read or whose spans are wrong
    ├── ScanError              documents that could not be scanned for identifiers
    ├── CheckpointError        a model folder that cannot be read
    ├── UnsupportedModelError  a model family that sani does not know, or not for this
    ├── SelectionError         a selector that chose nothing, or could not choose
    ├── AuditError             an audit that could not be carried out
    ├── AttackError            an attack that could not be carried out
    ├── RepairError            a repair that diverged or had nothing to learn from
    │   └── UnsavedError       a repair whose state could not be written
    ├── RunError               a run folder in use, or one that does not fit the recipe
    └── WriteError             a file or a folder that cannot be written

No message may hold an identifier: name a document by its number, a value by its label.
"""


class SaniError(Exception):
    """Base of all errors that sani raises on purpose; the text is for the user as it stands."""


class UsageError(SaniError):
    """Options that do not go together, or that no rule allows."""


class RecipeError(SaniError):
    """A recipe that cannot be read or does not make sense; lists every problem at once."""


class CorpusError(SaniError):
    """Documents that cannot be read or whose spans do not fit their text."""


class ScanError(SaniError):
    """Documents that could not be scanned; never to be read as documents without identifiers."""


class CheckpointError(SaniError):
    """A model folder that cannot be read, or that is not what it is given as."""


class UnsupportedModelError(SaniError):
    """A model family that sani does not know, or that this cannot be done with."""


class SelectionError(SaniError):
    """A selector that chose no neuron, or lacks what it needs to choose."""


class AuditError(SaniError):
    """An audit that could not be carried out; never to be read as a clean result."""


class AttackError(SaniError):
    """An attack that could not be carried out; never to be read as one that failed."""


class RepairError(SaniError):
    """A repair that diverged, or had nothing to learn from."""


class UnsavedError(RepairError):
    """A repair whose state could not be written: it can go on, which no other settings mend."""


class RunError(SaniError):
    """A run folder that is in use, or that belongs to another recipe."""


class WriteError(SaniError):
    """A file or a folder that cannot be written: the disk is full, or the path is wrong."""
