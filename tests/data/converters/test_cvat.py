import json

import numpy as np
import pytest
from PIL import Image
from small_set import HEIGHT, WIDTH, decoded, dense, same_tracks

from vis_d2.data.converters.clips import Notes
from vis_d2.data.converters.cvat import read_cvat
from vis_d2.data.converters.ytvis_format import YTVISWriter

META = """<meta><task>
  <name>a task</name><size>{size}</size><mode>interpolation</mode>
  <start_frame>{start}</start_frame><frame_filter>{step}</frame_filter>
  <labels>
    <label><name>person</name><attributes><attribute><name>age</name></attribute></attributes></label>
    <label><name>car</name><type>any</type></label>
  </labels>
  <original_size><width>40</width><height>24</height></original_size>
</task></meta>"""


def document(*tracks, size=6, start=0, step="", meta=META):
    body = "\n".join(tracks)
    meta = meta.format(size=size, start=start, step=step)
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    return f"{head}{meta}\n{body}\n</annotations>\n"


def track(label, *shapes, id_=0):
    return (
        f'<track id="{id_}" label="{label}" source="manual">\n' + "\n".join(shapes) + "\n</track>"
    )


def box(frame, x, y, w, h, outside=0, more=""):
    corners = f'xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + w:.2f}" ybr="{y + h:.2f}"'
    return f'<box frame="{frame}" outside="{outside}" occluded="0" keyframe="1" {corners} {more}/>'


def polygon(frame, x, y, w, h, outside=0):
    points = ";".join(
        f"{a:.2f},{b:.2f}" for a, b in [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    )
    return f'<polygon frame="{frame}" outside="{outside}" keyframe="1" points="{points}"></polygon>'


def mask(frame, x, y, patch, outside=0):
    bits = np.array(patch).ravel()
    edges = np.flatnonzero(np.diff(bits, prepend=0, append=1 - bits[-1]))
    runs = np.diff(edges, prepend=0)
    place = f'left="{x}" top="{y}" width="{len(patch[0])}" height="{len(patch)}"'
    rle = ", ".join(map(str, runs))
    return f'<mask frame="{frame}" outside="{outside}" keyframe="1" rle="{rle}" {place}/>'


def to_ytvis(path, target, notes=None, **options):
    source = read_cvat(path, notes or Notes(), **options)
    with YTVISWriter(target, source.categories) as writer:
        for clip in source.clips:
            writer.add(clip)
    return json.loads(target.read_text())


def same(found, *expected):
    masks = decoded(found["segmentations"])
    assert len(masks) == len(expected)
    for got, boxes in zip(masks, expected):
        assert (got is None) == (boxes is None)
        assert boxes is None or (got == dense(*boxes)).all()


def test_shapes_hold_until_the_next_or_until_outside(save, tmp_path):
    patch = [[0, 1, 1], [0, 0, 1]]
    text = document(
        track("car", polygon(1, 3, 3, 6, 4), polygon(3, 5, 3, 6, 4), polygon(4, 5, 3, 6, 4, 1)),
        track("person", mask(0, 30, 10, patch), mask(2, 30, 10, patch, 1), id_=7),
        track("person", box(4, 2, 2, 3, 3), id_=8),
    )
    notes = Notes()
    found = to_ytvis(save(text, "clip.xml"), tmp_path / "out.json", notes)
    names = [f"clip/frame_{n:06d}.PNG" for n in range(6)]
    assert found["videos"] == [
        {"id": 1, "height": HEIGHT, "width": WIDTH, "length": 6, "file_names": names}
    ]
    assert [c["name"] for c in found["categories"]] == ["person", "car"]
    car, person, boxed = found["annotations"]
    assert [row["category_id"] for row in (car, person, boxed)] == [2, 1, 1]
    assert [row["source_id"] for row in (car, person, boxed)] == [0, 7, 8]
    first, second = [(3, 3, 6, 4)], [(5, 3, 6, 4)]
    same(car, None, first, first, second, None, None)
    pixels = [(31, 10, 2, 1), (32, 11, 1, 1)]
    same(person, pixels, pixels, None, None, None, None)
    same(boxed, None, None, None, None, [(2, 2, 3, 3)], [(2, 2, 3, 3)])
    assert notes.lines() == [
        f"1 boxes made filled rectangles (first: {tmp_path}/clip.xml: line 23)"
    ]


def as_cvat(row, label):
    """A track of a YouTube-VIS file as CVAT writes masks drawn in every frame."""
    shapes, last = [], None
    for t, pixels in enumerate(decoded(row["segmentations"])):
        last = pixels if pixels is not None else last
        if last is not None:
            ys, xs = np.nonzero(last)
            patch = last[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(int)
            shapes.append(mask(t, xs.min(), ys.min(), patch.tolist(), int(pixels is None)))
    return track(label, *shapes, id_=row["id"])


def test_there_and_back(content, save, frames, tmp_path):
    names = {row["id"]: row["name"] for row in content["categories"]}
    meta = META.replace("person", "pedestrian")
    for video in content["videos"]:
        rows = [row for row in content["annotations"] if row["video_id"] == video["id"]]
        tracks = [as_cvat(row, names[row["category_id"]]) for row in rows]
        text = document(*tracks, size=video["length"], meta=meta)
        save(text, f"in/{video['file_names'][0].partition('/')[0]}.xml")
    same_tracks(to_ytvis(tmp_path / "in", tmp_path / "out.json", images=frames), content)


def test_a_mask_that_begins_with_foreground(save, tmp_path):
    text = document(track("car", mask(0, 0, 0, [[1, 1], [1, 0]])), size=1)
    (found,) = to_ytvis(save(text, "a.xml"), tmp_path / "out.json")["annotations"]
    same(found, [(0, 0, 2, 1), (0, 1, 1, 1)])


def test_ellipses_and_turned_boxes(save, tmp_path):
    ellipse = '<ellipse frame="0" outside="0" cx="20" cy="12" rx="10" ry="6" rotation="90"/>'
    text = document(
        track("car", box(0, 3, 5, 10, 4, more='rotation="90"')), track("car", ellipse), size=1
    )
    turned, oval = to_ytvis(save(text, "a.xml"), tmp_path / "out.json")["annotations"]
    same(turned, [(6, 2, 4, 10)])
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    exact = ((x - 20) / 6) ** 2 + ((y - 12) / 10) ** 2 <= 1
    got = decoded(oval["segmentations"])[0]
    assert (got & exact).sum() / (got | exact).sum() > 0.95


def test_frames_of_a_part_of_the_video(save, tmp_path):
    text = document(
        track("car", polygon(100, 3, 3, 6, 4), polygon(110, 5, 3, 6, 4)), size=3, start=100,
        step="step=5",
    )  # fmt: skip
    found = to_ytvis(save(text, "a.xml"), tmp_path / "out.json")
    assert found["videos"][0]["file_names"] == [f"a/frame_{n:06d}.PNG" for n in (100, 105, 110)]
    same(found["annotations"][0], [(3, 3, 6, 4)], [(3, 3, 6, 4)], [(5, 3, 6, 4)])
    text = document(track("car", polygon(2, 3, 3, 6, 4)), size=3, start=100, step="step=5")
    found = to_ytvis(save(text, "a.xml"), tmp_path / "out.json")
    same(found["annotations"][0], None, None, [(3, 3, 6, 4)])


def test_a_track_may_end_behind_the_last_frame(save, tmp_path):
    text = document(track("car", polygon(1, 3, 3, 6, 4), polygon(2, 3, 3, 6, 4, 1)), size=2)
    found = to_ytvis(save(text, "a.xml"), tmp_path / "out.json")
    same(found["annotations"][0], None, [(3, 3, 6, 4)])


@pytest.mark.parametrize("place", ["a", ".", "images"])
def test_images_tell_names_and_size(save, tmp_path, place):
    folder = tmp_path / "root" / place
    folder.mkdir(parents=True)
    for n in range(2):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"f{n}.jpg")
    text = document(track("car", polygon(0, 3, 3, 6, 4)), meta="")
    path = save(text, "a.xml")
    found = to_ytvis(path, tmp_path / "out.json", images=tmp_path / "root")
    prefix = "" if place == "." else f"{place}/"
    assert found["videos"][0]["file_names"] == [f"{prefix}f0.jpg", f"{prefix}f1.jpg"]
    same(found["annotations"][0], [(3, 3, 6, 4)], [(3, 3, 6, 4)])
    Image.new("RGB", (WIDTH, 9)).save(folder / "f0.jpg")
    with pytest.raises(ValueError, match="original_size is .24, 40., but the images are .9, 40."):
        to_ytvis(save(document(size=2), "a.xml"), tmp_path / "out.json", images=tmp_path / "root")


def test_a_folder_of_files_is_a_data_set(save, tmp_path):
    for name in ("v10", "v9"):
        save(document(track("car", polygon(0, 3, 3, 6, 4)), size=1), f"in/{name}.xml")
    found = to_ytvis(tmp_path / "in", tmp_path / "out.json")
    names = [video["file_names"][0].split("/")[0] for video in found["videos"]]
    assert names == ["v9", "v10"] and len(found["annotations"]) == 2
    with pytest.raises(FileNotFoundError, match="no XML file"):
        read_cvat(tmp_path, Notes())


def test_lines_and_points_have_no_area(save, tmp_path):
    text = document(track("car", '<points frame="0" outside="0" points="1,1;2,2"/>'))
    notes = Notes()
    found = to_ytvis(save(text, "a.xml"), tmp_path / "out.json", notes)
    assert found["annotations"] == []
    assert notes.lines()[0].startswith("1 shapes of type points left out")


CAR = polygon(0, 3, 3, 6, 4)


@pytest.mark.parametrize(
    "text, message",
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotations/>', "line 1: document types"),
        ("<annotation/>", "line 1: <annotation> is not CVAT's <annotations>"),
        ("<annotations>\n<image id='0'/></annotations>", "line 2: images, not tracks"),
        (document(track("car", CAR.replace(",", " "))), "line 14: points must be"),
        (document(track("car", CAR.replace("3.00", "nan"))), "line 14: .*polygon"),
        (document(track("car", CAR.replace('"0"', '"x"'))), "line 14: frame must be an integer"),
        (document(track("car", CAR.replace('frame="0"', 'frame="-2"'))), "there is no frame -2"),
        (document(track("car", polygon(9, 3, 3, 6, 4))), "ends in line 14 has a shape in frame 9"),
        (document(track("", CAR)), "line 13: a track needs a label"),
        (document(track("car", mask(0, 1, 1, [[1]]).replace('"0, 1"', '"0, 2"'))), "do not fill"),
        (document(track("car", mask(0, 39, 1, [[1, 1]]))), r"mask of 2x1 at \(39, 1\) is not in"),
        (document(track("car", box(0, 1, 1, 2, 2).replace('xtl="1.00"', ""))), "xtl must be"),
        (document(track("car", CAR), meta=""), "a shape before original_size"),
        (document(meta=""), "no original_size"),
        (document(size=10**9), "1000000000 frames are more than"),
        (document(size="x"), "size must be an integer"),
        (document(meta=META.replace("<size>{size}</size>", "")), "no frames"),
        (document(meta=META.replace("40<", "0<")), "is not that of an image"),
        (document(meta=META.replace("meta>", "meta><task/>", 1)), "several tasks"),
    ],
)
def test_errors_name_file_and_line(save, tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"bad\.xml: .*{message}"):
        to_ytvis(save(text, "bad.xml"), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
