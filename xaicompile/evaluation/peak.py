"""Peak memory of one model: `python -m xaicompile.evaluation.peak MODEL FEED.npz` in a process of its own.

Linux hands a parent's peak on to its children as `ru_maxrss`, even across exec; VmHWM of /proc belongs to the process
alone. Where there is no /proc, a child starts with a peak of its own, and `ru_maxrss` is right.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from xaicompile.images import read_arrays
from xaicompile.runtime import Session, version

STATUS = Path("/proc/self/status")


def peak_bytes() -> int | None:
    """The most memory that this process was resident with so far, in bytes; None where the system does not say."""
    if STATUS.exists():
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Loads the model, runs it twice, and prints two peaks as JSON: with the libraries alone, and in the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("feed", help=".npz file with the inputs by name")
    parser.add_argument("--base-dir", help="folder of the external data, if it is not the model's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    feed = read_arrays(options.feed)
    assert isinstance(feed, dict)
    version()  # imports ONNX Runtime
    libraries = peak_bytes()
    model = Path(options.model).read_bytes() if options.base_dir else options.model
    session = Session(model, device=options.device, threads=options.threads, base_dir=options.base_dir)
    for _ in range(2):
        session.run(feed)
    print(json.dumps({"libraries": libraries, "peak": peak_bytes()}))


if __name__ == "__main__":
    main()
