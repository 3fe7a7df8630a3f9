"""What reaches the disk, and in which order."""

import os
from pathlib import Path


def traced(monkeypatch):
    """Return a list that fills with every fsync and rename: what was done, and the name's end."""
    calls = []
    sync, rename, replace = os.fsync, os.rename, os.replace

    def fsync(handle):
        calls.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().name))
        sync(handle)

    def renamed(call):
        def run(old, new, **more):
            calls.append(("rename", Path(new).name))
            call(old, new, **more)

        return run

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed(rename))
    monkeypatch.setattr(os, "replace", renamed(replace))
    return calls
