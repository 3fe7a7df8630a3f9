"""What a scan leaves in its folder, and how it is read back."""

from pathlib import Path

from deepen.records.record import read_record
from deepen.records.scan import ScanRecord

SCAN = "scan.json"


def read_scan(folder: Path) -> ScanRecord:
    """Read what a scan wrote.

    Raises:
        DeepenError: It is missing, or not what this version writes.
    """
    return read_record(ScanRecord, folder / SCAN, "scan again")
