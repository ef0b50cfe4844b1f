"""Files that are complete whenever they are there."""

import pytest

from mmsmca.files import written_whole


def test_files_of_others_beside_the_destination_stay(tmp_path):
    beside = tmp_path / 'report.md.partial'
    beside.write_text('mine')
    with written_whole(tmp_path / 'report.md') as partial:
        partial.write_text('whole')
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / 'report.md') as partial:
        partial.write_text('half')
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        'report.md.partial': 'mine',
        'report.md': 'whole',
    }
