"""Notes each file of unveil in which the body of a function runs, in all threads of this process.

Python imports this module at its start where the folder is on PYTHONPATH. Imports do not count, nor does what they
call. SIGUSR1 starts again.
"""

import os
import signal
import sys
import threading
from types import FrameType

OUT, PACKAGE = os.environ.get("UNVEIL_FILES_OUT", ""), os.environ.get("UNVEIL_FILES_PACKAGE", "")
OPTIMIZED = 1  # of code: the body of a function, and not of a module or a class
noted: set[str] = set()


def note(frame: FrameType, event: str, argument: object) -> None:
    """Notes the file of a call, once."""
    del argument
    code = frame.f_code
    name = code.co_filename
    if event != "call" or name in noted or not code.co_flags & OPTIMIZED or not name.startswith(PACKAGE):
        return
    outer = frame.f_back
    while outer is not None:
        if outer.f_code.co_filename.startswith("<frozen importlib"):
            return
        outer = outer.f_back
    noted.add(name)
    with open(OUT, "a", encoding="utf-8") as file:
        file.write(name + "\n")


if OUT:
    signal.signal(signal.SIGUSR1, lambda number, frame: noted.clear())
    sys.setprofile(note)
    threading.setprofile(note)
