"""Do the hubs answer? Asked side by side and not for long."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

TIMEOUT_S = 3.0


def endpoints(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """By hub, where it or its mirror is."""
    return {
        "Hugging Face": environment.get("HF_ENDPOINT") or "https://huggingface.co",
        "ModelScope": environment.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn",
    }


def ask(places: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> dict[str, str | None]:
    """By hub, why it does not answer; None where it does, whatever it says."""
    found: dict[str, str | None] = dict.fromkeys(places, f"no answer within {timeout_s:g} s")

    def one(name: str, place: str) -> None:
        try:
            request = urllib.request.Request(place, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout_s):
                found[name] = None
        except urllib.error.HTTPError:
            found[name] = None
        except (OSError, ValueError) as error:  # ValueError: an endpoint that is no address
            found[name] = str(getattr(error, "reason", None) or error)[:160]

    threads = [threading.Thread(target=one, args=item, daemon=True) for item in places.items()]
    for thread in threads:
        thread.start()
    for thread in threads:  # a name that is looked up for long has no timeout of its own
        thread.join(timeout_s + 0.5)
    return dict(found)


def host(place: str) -> str:
    """Of an endpoint, for people."""
    return urlsplit(place).netloc or place
