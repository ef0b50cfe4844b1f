"""Files that are complete whenever they are there."""

import pytest

from mmsmca.files import atomic_write


def test_files_of_others_beside_the_destination_stay(tmp_path):
    beside = tmp_path / 'report.md.partial'
    beside.write_text('mine')
    with atomic_write(tmp_path / 'report.md') as partial:
        partial.write_text('whole')
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / 'report.md') as partial:
        partial.write_text('half')
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        'report.md.partial': 'mine',
        'report.md': 'whole',
    }
