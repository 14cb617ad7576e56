import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vis_d2.data.annotation_file import pack_runs, read_annotations
from vis_d2.data.splits import (
    RECIPES,
    annotated_videos,
    coverage,
    ids_text,
    parse_ids,
    part_of_file,
    split_videos,
)

ROOT = Path(__file__).resolve().parents[2]
# Three categories in every second, fifth and eleventh of 40 videos.
LABELS = {i: {c for c in (2, 5, 11) if i % c == 0} for i in range(1, 41)}


def test_sizes_and_shares():
    parts = split_videos(LABELS, 0.25, 0)
    assert len(parts["val"]) == 10 and sorted(sum(parts.values(), [])) == sorted(LABELS)
    numbers = Counter(c for i in parts["val"] for c in LABELS[i])
    assert numbers == {2: 5, 5: 2, 11: 1}


def test_the_choice_is_the_same_everywhere():
    """The digest was written down once; another machine or Python must find it again."""
    digests = {
        stratify: hashlib.sha256(
            ids_text(split_videos(LABELS, 0.25, 0, stratify)).encode()
        ).hexdigest()[:16]
        for stratify in (True, False)
    }
    assert digests == {True: "d5b59991bedbb806", False: "b905e5fe025d2777"}


def test_neither_order_nor_hash_seed_matters():
    code = (
        "from vis_d2.data.splits import *\n"
        "labels = {i: {c for c in (2, 5, 11) if i % c == 0} for i in reversed(range(1, 41))}\n"
        "print(split_videos(labels, 0.25, 3)['val'])"
    )
    expected = str(split_videos(LABELS, 0.25, 3)["val"])
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", "import sys; sys.argv[0] = 'vis-d2'\n" + code]
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == expected


def test_another_seed_is_another_split():
    assert len({ids_text(split_videos(LABELS, 0.25, seed)) for seed in range(5)}) > 1
    assert len({ids_text(split_videos(LABELS, 0.25, seed, False)) for seed in range(5)}) == 5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.sets(st.integers(1, 4), max_size=1), min_size=10, max_size=40),
    st.integers(0, 99),
)
def test_a_category_of_two_videos_is_on_both_sides(rows, seed):
    """With five validation videos for four categories there is always room."""
    labels = dict(enumerate(rows))
    parts = split_videos(labels, 5, seed)
    assert len(parts["val"]) == 5
    numbers = Counter(c for row in rows for c in row)
    covered = coverage(parts, labels)
    expected = {c for c, number in numbers.items() if number > 1}
    assert expected <= covered["train"] & covered["val"]


@pytest.mark.parametrize("val", [0, 1.5, -1, 40, 41, 0.001, float("nan"), float("inf")])
def test_a_part_may_not_be_empty(val):
    with pytest.raises(ValueError, match="40 videos"):
        split_videos(LABELS, val, 0)


def test_recipes():
    parts = RECIPES["tfds"](list(range(2238, 0, -1)))
    assert {name: len(ids) for name, ids in parts.items()} == {
        "train": 1838,
        "val": 200,
        "test": 200,
    }
    assert parts["train"][0] == 2238 and parts["val"][0] == 400 and parts["test"][-1] == 1
    with pytest.raises(ValueError, match="2238 .* has 10"):
        RECIPES["tfds"](list(range(10)))
    assert RECIPES["stmask"](list(range(20))) == {"train": list(range(18)), "val": [18, 19]}
    assert {k: len(v) for k, v in RECIPES["stmask"](list(range(2238))).items()} == {
        "train": 2014,
        "val": 224,
    }
    with pytest.raises(ValueError, match="single"):
        RECIPES["stmask"]([1])


def test_lists_of_ids_are_read_back():
    parts = split_videos(LABELS, 0.25, 0)
    assert parse_ids(ids_text(parts), list(LABELS)) == parts
    assert parse_ids("3\n\n 1 \n", [1, 2, 3]) == {"train": [2], "val": [3, 1]}


@pytest.mark.parametrize(
    "text", ["7", "a", "val 1 2", "../x 1", "val 1\nval 1", "", "1\n2\n3", "train 1", "9" * 50]
)
def test_lists_that_do_not_fit(text):
    with pytest.raises(ValueError):
        parse_ids(text, [1, 2, 3])


def test_crowds_are_no_ground_truth(content):
    content["annotations"][2]["iscrowd"] = 1
    assert annotated_videos(content).labels == {10: {3, 7}, 20: set()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "is absent: there is nothing"),
        (lambda c: c.update(annotations=None), "is null: there is nothing"),
        (lambda c: c.update(annotations=[]), "is empty: there is nothing"),
        (lambda c: c.update(annotations={"a": 1}), "is {'a': 1}"),
        (lambda c: c.update(videos=None), "list 'videos'"),
        (lambda c: c["videos"][0].update(id=20), "used more than once"),
        (lambda c: c["annotations"][1].update(video_id=9), "annotation 1: there is no video 9"),
        (lambda c: c["annotations"][1].update(video_id=[]), "annotation 1 has no integer"),
        (lambda c: c["annotations"][1].pop("category_id"), "annotation 1 has no integer"),
    ],
)
def test_files_that_cannot_be_split(content, change, message):
    change(content)
    with pytest.raises(ValueError, match=message):
        annotated_videos(content)


def test_a_part_is_the_file_with_fewer_videos(content, save):
    content["info"] = {"note": "ä", "nested": [1.5, None]}
    part = json.loads(part_of_file(read_annotations(save(content), pack_runs), [20]))
    assert list(part) == list(content) and part["info"] == content["info"]
    assert part["categories"] == content["categories"]
    assert part["videos"] == content["videos"][1:]
    assert part["annotations"] == content["annotations"][2:]


def test_no_nan_is_written(content):
    content["annotations"][0]["areas"][0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        part_of_file(content, [10])
