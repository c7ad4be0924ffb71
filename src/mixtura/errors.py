"""Errors that a user can mend; each names the value, the bound and the remedy."""


class MixturaError(ValueError):
    """A user's error: one line that says what was given, what is allowed, and what to do."""


class ConfigError(MixturaError):
    """A recipe or a config that cannot be built: an unknown key, or a value out of bounds."""


class DataError(MixturaError):
    """A corpus or a token file that cannot be used: nothing readable, or truncated."""


class CheckpointError(MixturaError):
    """A run or a checkpoint that is missing, truncated, or of another model."""


class PlatformError(MixturaError, ImportError):
    """A part of Mixtura that this operating system cannot run."""


class NonFiniteError(MixturaError):
    """A loss or an activation that is not finite; names the step and the layer where it began."""


class StorageError(MixturaError):
    """The file system refused a write: a full disk, or no permission; nothing was half-written."""
