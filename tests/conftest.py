"""What all tests share: one thread a process, because they are small and run side by side (pytest -n)."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
