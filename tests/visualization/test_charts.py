import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from vis_d2.visualization.charts import ACCENT, DARK, LIGHT, Panel, Series, save_bars, save_panels


def colors(path):
    """Pixels of each colour in a picture."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return {"#%02x%02x%02x" % tuple(v): int(n) for v, n in zip(values, counts)}


def test_bars_are_as_long_as_their_values(tmp_path):
    path = tmp_path / "bars.png"
    series = [Series("a", [10.0, 30.0])]
    save_bars(path, "T", ["x", "y"], series, axis="percent", highlight=0)
    found = colors(path)
    assert found[DARK] == pytest.approx(3 * found[ACCENT], rel=0.05)


def test_two_series(tmp_path):
    path = tmp_path / "bars.png"
    series = [Series("AP", [50.0, None]), Series("AP50", [50.0, 50.0])]
    save_bars(path, "T", ["x", "y"], series, axis="percent", notes=["", ""], limit=100)
    found = colors(path)
    assert 1.8 < found[LIGHT] / found[DARK] < 2.2


def test_many_and_odd_names(tmp_path):
    """No formula in a name breaks the chart, and its height has a limit."""
    names = ["$a$_{", "a\nb", "x" * 200, "%s {0} \\frac"] * 30
    heights = []
    for count in (1, 60, 120):
        path = tmp_path / f"{count}.png"
        series = [Series("AP", [float(i) for i in range(count)])]
        save_bars(path, "T", names[:count], series, axis="percent")
        heights.append(Image.open(path).height)
    assert heights[0] < heights[1] == heights[2] < 4000


def test_all_zero(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_bars(tmp_path / "a.png", "T", ["x"], [Series("a", [0.0])], axis="percent")
    assert DARK not in colors(tmp_path / "a.png")


def test_panels(tmp_path):
    series = [Series("AP", [50.0, 100.0]), Series("recall", [None, 75.0])]
    panel = Panel("length", ["1–2\nn = 3", "3\nn = 4"], series)
    sizes = []
    for count in (1, 3):
        save_panels(tmp_path / "p.png", "T", [panel] * count, axis="percent")
        found = colors(tmp_path / "p.png")
        assert found[DARK] == pytest.approx(2 * found[LIGHT], rel=0.1)
        sizes.append(Image.open(tmp_path / "p.png").width)
    assert sizes[1] == pytest.approx(3 * sizes[0], rel=0.02)


def test_no_display_and_no_global_state():
    code = (
        "import sys, tempfile, os\n"
        "from vis_d2.visualization.charts import Series, save_bars\n"
        "assert 'matplotlib' not in sys.modules\n"
        "path = os.path.join(tempfile.mkdtemp(), 'a.png')\n"
        "save_bars(path, 'T', ['x'], [Series('a', [1.0])], axis='p')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "os.remove(path); os.rmdir(os.path.dirname(path))"
    )
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'vis-d2'\n" + code]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
