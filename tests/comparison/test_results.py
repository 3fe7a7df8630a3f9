"""A study's files: read by whoever needs them, without torch."""

import subprocess
import sys

import pytest

import studies
from deepen.common.errors import DeepenError
from deepen.comparison.results import RECORDS, SUMMARY, read_records, read_study


def test_what_was_written_is_read(tmp_path):
    records, summary = studies.study(seeds=(0,))
    assert read_records(tmp_path) == []
    studies.write(tmp_path, records, summary)
    assert read_records(tmp_path) == records
    assert read_study(tmp_path) == (records, summary)


@pytest.mark.parametrize("name", [RECORDS, SUMMARY])
def test_a_broken_file_is_named(tmp_path, name):
    folder = studies.write(tmp_path, *studies.study(seeds=(0,)))
    (folder / name).write_text('{"arm": 1}\n')
    with pytest.raises(DeepenError, match=rf"{name}' is damaged or of another version"):
        read_study(folder)


def test_a_study_without_a_finished_arm_is_one_to_wait_for(tmp_path):
    with pytest.raises(DeepenError, match="wait for the first arm"):
        read_study(studies.write(tmp_path, [], studies.study(seeds=(0,))[1]))


def test_reports_are_made_without_torch():
    code = "import sys, deepen.report.page, deepen.report.terminal, deepen.report.methods"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
