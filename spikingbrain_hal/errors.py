"""The exceptions this package raises beside ValueError, TypeError and torch.OutOfMemoryError."""


class UnsupportedOp(NotImplementedError):
    """A legal call that the selected backend has no kernel for. The only error that may fall back."""


class BackendUnavailable(RuntimeError):
    """A backend was asked for that is not installed, not built, or finds no device."""


class DeviceError(RuntimeError):
    """A kernel launch failed on its device."""


class StrideError(ValueError):
    """A kernel wants contiguous inputs; the dispatcher copies them and calls again. Never reaches a caller."""
