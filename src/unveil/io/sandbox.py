"""A process that reads files of strangers: its own, with a bare environment, and with limits of memory, time and disk.

A reader of a complicated format has faults that nobody knows yet. What runs here can take little with it: when it
dies, hangs or fills the memory, the parent says so and goes on.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

_PASSED = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX")
# of processes that compute: who the user is, where Python, libraries and caches are, and the settings of the libraries
_COMPUTE = (*_PASSED, "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TEMP", "TMP", "VIRTUAL_ENV", "CC", "CXX")
_COMPUTE += ("DYLD_LIBRARY_PATH", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_ADDRESSES = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_COMPUTE += (*_ADDRESSES, "HF_HUB_DISABLE_XET", "SSL_CERT_FILE")
_COMPUTE_PREFIXES = ("LC_", "PYTHON", "UNVEIL_", "TORCH", "PYTORCH_", "TRITON_", "CUDA_", "NVIDIA_", "NCCL_", "CUBLAS_")
_COMPUTE_PREFIXES += ("OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "ROCM_", "HIP_", "HSA_", "MIOPEN_")
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")  # parts of the names of secrets
# -I leaves out the working folder and PYTHONPATH, so the child gets the path of its parent's source
_RUN = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of this package, isolated from the user's own Python files."""
    return [sys.executable, "-I", "-c", _RUN, str(Path(__file__).parents[2]), module, *arguments]


def environment() -> dict[str, str]:
    """Return the few variables that a child needs; none of the user's secrets.

    One thread each: the threads of numerical libraries take address space, more than the file, on a machine with many
    cores.
    """
    passed = {key: value for key, value in os.environ.items() if key in _PASSED}
    return passed | dict.fromkeys(_THREADS, "1")


def compute_environment() -> dict[str, str]:
    """Return the variables for a process that computes: settings of Python, libraries and unveil; no secrets."""
    return {
        key: value
        for key, value in os.environ.items()
        if (key in _COMPUTE or key.startswith(_COMPUTE_PREFIXES))
        and not any(part in key for part in _SECRET)
        and not (key in _ADDRESSES and "@" in value)  # a password
    }


def limit(*, seconds: int, memory: int, written: int) -> None:
    """Takes from this process what its work does not need; nothing on systems without such limits.

    Args:
        seconds: Limit of CPU time.
        memory: Limit of the address space in bytes.
        written: Maximum size of a written file in bytes.
    """
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, written),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, hard if kind == resource.RLIMIT_CPU else most))  # time: see `more_seconds`
        except (ValueError, OSError):
            if sys.platform == "linux":  # macOS knows no limit of address space and calls each one too large
                raise


def address_space() -> int:
    """Return the bytes of address space that this process has mapped; 0 if the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def explain_end(code: int, seconds: int) -> str:
    """Return how a child ended that gave no result: the limit that it exceeded, or its signal or exit code.

    Args:
        code: Exit code, or minus the number of a signal, as of `subprocess`.
        seconds: Limit of CPU time that it had.
    """
    if -code == signal.SIGXCPU:
        return f"took more than {seconds} s of CPU time"
    return f"ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"


def more_seconds(seconds: int) -> None:
    """Gives this process so much CPU time from now on; for one that does one piece of work after another."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (round(used.ru_utime + used.ru_stime) + seconds, hard))
