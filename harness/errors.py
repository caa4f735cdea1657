"""What can go wrong in the bench, drawn as a tree, with the exit code that each carries.

FuseBenchError         1
├── SuiteError         2   the suite file: every problem at once, with file:line:column
├── UsageError         2   a name, a path or an option that cannot be used
├── TaskError          2   a task that cannot be scored: no data, a missing field, an unknown name
├── StoreError         1   the disk is full, or an object in the store is damaged
├── SandboxError       2   generated programs cannot be run as safely as asked
├── TrackError         1   MLflow did not take the results (`track.py`); `run` makes a warning of it
└── Interrupted      130   Ctrl-C

`fusion.errors.FusionError` is the engine's; the command line shows it alike, with exit code 2.
"""


class FuseBenchError(Exception):
    """A fault that its text explains: shown without a traceback."""

    exit_code = 1


class SuiteError(FuseBenchError):
    """A suite file with problems."""

    exit_code = 2


class UsageError(FuseBenchError):
    """A command that cannot be carried out as given."""

    exit_code = 2


class TaskError(FuseBenchError):
    """A task that cannot be scored."""

    exit_code = 2


class StoreError(FuseBenchError):
    """The disk said no, or an object in the store is damaged."""


class SandboxError(FuseBenchError):
    """Generated programs cannot be run as safely as the suite asks."""

    exit_code = 2


class Interrupted(FuseBenchError):
    """The user pressed Ctrl-C."""

    exit_code = 130
