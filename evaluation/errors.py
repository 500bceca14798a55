"""The one error a user of the evaluation can cause, and errors in words."""

from __future__ import annotations

import errno

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class EvaluationError(ValueError):
    """Bad input to, or a failure of, an evaluation: one line with the bad value and the next step."""


def in_words(error: BaseException) -> str:
    """One line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def is_of_the_disk(error: BaseException) -> bool:
    """Whether a disk failed or is full: nothing that a layer set could be blamed for."""
    return isinstance(error, OSError) and error.errno in _DISK
