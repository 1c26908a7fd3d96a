"""Imported first by the fork server.

Linux ends the server with the process that started it, also during imports.
"""

from __future__ import annotations

import ctypes
import signal
import sys

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
