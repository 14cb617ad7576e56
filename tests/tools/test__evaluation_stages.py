import json

import numpy as np

from vis_d2.tools import _evaluation_stages as stages
from vis_d2.tools._synthetic_tracks import make_files


def test_both_programs_give_the_same_numbers_in_every_stage(tmp_path):
    paths = []
    for name, content in zip(("gt", "results"), make_files(3, 4, (60, 80), 2, 6, 3)):
        paths.append(str(tmp_path / f"{name}.json"))
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    plain, fast = stages.time_plain(paths, 1), stages.time_fast(paths, 1, 1)
    for stage in (stages.IOU, stages.ALL):
        assert plain[stage][1].size > 0
        assert np.array_equal(plain[stage][1], fast[stage][1])
    assert all(seconds > 0 for seconds, _ in [*plain.values(), *fast.values()])
    assert set(plain) == set(fast) == {stages.READ, stages.IOU, stages.BOTH, stages.ALL}
    assert stages.peak_memory(paths, 1) > 0
