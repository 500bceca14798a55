"""Reads search_result_*.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.errors import ModelError


@contextmanager
def search_result(path: Path) -> Iterator[Any]:
    """The document, for a body that takes it apart as if it were one.

    Raises:
        ModelError: the file is missing or, as the body finds, not the result of a search.
    """
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; give a search_result_*.json") from None
    except ModelError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ModelError(
            f"{path} is not the result of a search ({type(error).__name__}); give a search_result_*.json"
        ) from error
