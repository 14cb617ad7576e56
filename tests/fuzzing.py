"""Broken files, made from a seed, and a run of everything that reads files over them.

``python tests/fuzzing.py FIRST LAST`` runs the cases of that range and prints one line for each
thing that is neither a result nor a clean error; its exit code is 1 if there was any. A case that
hangs ends the process with a traceback, after the line that says which it is.
"""

import argparse
import contextlib
import copy
import faulthandler
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

from PIL import Image

HEIGHT, WIDTH, LENGTH = 12, 16, 3
SECONDS_PER_CASE = 30  # of work; a busy machine may take longer
MOST_SECONDS_PER_CASE = 600  # by the clock
EACH_ANALYZED = 5  # charts take their time
# What an error must name: the file, or what is in it.
_PLACE = re.compile(r"\.json|annotation|result|video|categor")
CLEAN = (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
JUNK: List[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 1e308, -0.5, 0.5, float("nan"),
    float("inf"), "", "0", "x" * 5000, "\ud800", "päth\u202e\x00\n", "../../outside", "/dev/zero",
    "C:\\x", [], [[]], [None], {}, {"size": []}, [1, 2], [1.5, "a", None], {"a": {"b": {}}},
    [[0, 0, 1e300, 0, 5, 5]], [[0, 0, 5, 0, 5, float("nan")]], [[1, 1]],
    {"size": [HEIGHT, WIDTH], "counts": ""}, {"size": [0, 0], "counts": []},
    {"size": [2**31, 2**31], "counts": "0"}, {"size": [-12, -16], "counts": [192]},
    {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
    {"size": [HEIGHT, WIDTH], "counts": [-5, 197]},
    {"size": [HEIGHT, WIDTH], "counts": [1e300, 0.5]},
    {"size": [HEIGHT, WIDTH], "counts": "P" * 3000}, {"size": "ab", "counts": "cd"},
    {"size": {"0": 12}, "counts": {"0": 1}}, {"counts": [1], "size": 7},
]  # fmt: skip


def _runs(x: int, y: int, w: int, h: int) -> Dict[str, Any]:
    runs, end = [], 0
    for column in range(x, x + w):
        runs += [column * HEIGHT + y - end, h]
        end = column * HEIGHT + y + h
    return {"size": [HEIGHT, WIDTH], "counts": [*runs, HEIGHT * WIDTH - end]}


def _string(x: int, y: int, w: int, h: int) -> Dict[str, Any]:
    from pycocotools import mask

    rle = mask.frPyObjects(_runs(x, y, w, h), HEIGHT, WIDTH)
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def sound_files() -> Tuple[Dict[str, Any], List[Dict[str, Any]]]:
    """Annotations and results with nothing wrong, masks in all three forms."""
    videos = [
        {
            "id": v,
            "width": WIDTH,
            "height": HEIGHT,
            "length": LENGTH,
            "file_names": [f"v{v}/{t}.png" for t in range(LENGTH)],
        }
        for v in (1, 2, 3, 4)
    ]
    masks = [
        [_runs(1, 1, 4, 4), _runs(2, 2, 4, 4), None],
        [_string(3, 3, 5, 5), None, _string(4, 4, 5, 5)],
        [[[8, 2, 14, 2, 14, 9, 8, 9]], [[8, 3, 14, 3, 14, 9, 8, 9]], None],
    ]
    boxes = [
        [[1, 1, 4, 4], [2, 2, 4, 4], None],
        [[3, 3, 5, 5], None, [4, 4, 5, 5]],
        [[8, 2, 6, 7], [8, 3, 6, 6], None],
    ]
    rows = [
        {"video_id": v, "category_id": 1 + (v + k) % 2, "segmentations": masks[k]}
        for v in (1, 2, 3, 4)
        for k in range(3)
    ]
    annotations = [
        {"id": i + 1, **row, "bboxes": boxes[i % 3], "iscrowd": int(i == 5), "areas": None}
        for i, row in enumerate(rows)
    ]
    for i in (0, 1, 3):
        annotations[i]["areas"] = [16, 16, None] if i % 3 == 0 else [25, None, 25]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"info": {"year": 2019}, "videos": videos, "categories": categories}
    content["annotations"] = annotations
    results = [{**row, "score": 0.9 - 0.05 * i} for i, row in enumerate(rows)]
    return copy.deepcopy(content), copy.deepcopy(results)


def write_sound_set(folder: Path) -> Path:
    """Write the sound files as train.json and results.json, with frames in train/JPEGImages."""
    content, results = sound_files()
    for video in content["videos"]:
        for t, name in enumerate(video["file_names"]):
            path = folder / "train" / "JPEGImages" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT), (video["id"], t, 0)).save(path)
    (folder / "train.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def _nodes(value: Any) -> Iterator[Tuple[Any, Any]]:
    """All (container, key) pairs."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in list(pairs):
        yield value, key
        if isinstance(child, (dict, list)):
            yield from _nodes(child)


def mutate(content: Any, rng: random.Random) -> None:
    """Change one thing somewhere in the content."""
    nodes = list(_nodes(content))
    if not nodes:
        return
    # A random depth first: most nodes are the numbers of run lengths.
    keys = sorted({str(key) if isinstance(key, str) else "item" for _, key in nodes})
    wanted = rng.choice(keys)
    parent, key = rng.choice(
        [n for n in nodes if (n[1] if isinstance(n[1], str) else "item") == wanted]
    )
    value = parent[key]
    kind = rng.choice(["junk", "junk", "delete", "double", "move", "scramble", "number", "deep"])
    if kind == "delete":
        del parent[key]
    elif kind == "double" and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(value))
    elif kind == "move":  # a value that is sound elsewhere
        other, place = rng.choice(nodes)
        if isinstance(other, dict) == (place in other):
            parent[key] = copy.deepcopy(other[place]) if isinstance(other, dict) else value
    elif kind == "scramble" and isinstance(value, str):
        parent[key] = _scrambled(value, rng)
    elif kind == "scramble" and isinstance(value, list):
        rng.shuffle(value)
    elif kind == "number" and isinstance(value, (int, float)):
        as_float = float(value) if abs(value) < 2**1000 else 0.0
        changed = [-value, value + 1, value * 1000, str(value), as_float, [value]]
        parent[key] = rng.choice(changed)
    elif kind == "deep":
        for _ in range(rng.choice([3, 60, 400])):
            value = [value] if rng.random() < 0.5 else {"x": value}
        parent[key] = value
    else:
        parent[key] = copy.deepcopy(rng.choice(JUNK))


def _scrambled(text: str, rng: random.Random) -> str:
    letters = list(text)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(letters) + 1)
        letter = chr(rng.choice([rng.randrange(32, 127), rng.randrange(48, 112), 0x20AC, 0]))
        letters[place : place + rng.choice([0, 1, 1])] = letter * rng.choice([1, 1, 20])
    return "".join(letters[: rng.choice([len(letters), len(letters), len(letters) // 2])])


def _as_bytes(content: Any, rng: random.Random) -> bytes:
    """The JSON text, in one case of six broken as a text."""
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    broken = [
        lambda: data[: rng.randrange(len(data))],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: text.encode("utf-16", "surrogatepass"),
        lambda: b"",
        lambda: rng.choice([b"[", b'{"videos":']) * 100_000,
        lambda: data.replace(b"1", b"9" * 5000, 1),
        lambda: data.replace(b"16", b"NaN", rng.randint(1, 5)),
        lambda: data + data,
        lambda: bytes(b ^ (rng.random() < 0.003) * rng.randrange(1, 255) for b in data),
        lambda: b'{"annotations": null, ' + data.lstrip(b"{["),
    ]
    return rng.choice(broken)() if rng.random() < 1 / 6 else data


def write_case(number: int, folder: Path) -> None:
    """Write ``gt.json`` and ``results.json`` of one case; the same for each number everywhere."""
    rng = random.Random(f"case {number}")
    content, results = sound_files()
    which = rng.choice(["gt", "gt", "results", "both"])
    for _ in range(rng.choice([1, 1, 1, 2, 4]) * (which != "results")):
        mutate(content, rng)
    for _ in range(rng.choice([1, 1, 1, 2, 4]) * (which != "gt")):
        mutate(results, rng)
    plain = json.dumps
    gt = _as_bytes(content, rng) if which != "results" else plain(content).encode()
    found = _as_bytes(results, rng) if which != "gt" else plain(results).encode()
    (folder / "gt.json").write_bytes(gt)
    (folder / "results.json").write_bytes(found)


def _targets(work: Path, number: int) -> Dict[str, Callable[[], int]]:
    """What is run on each case; each returns its exit code."""
    from vis_d2.data import load_ytvis_json
    from vis_d2.tools import (
        analyze,
        check_dataset,
        check_results,
        convert,
        draw,
        evaluate,
        export,
        split,
    )

    gt, results, out = str(work / "gt.json"), str(work / "results.json"), str(work / "out")
    frames = str(work / "train" / "JPEGImages")
    both = ["--gt", gt, "--results", results]
    shown = ["--images", frames, "--min-side", "0", "--sheet-frames", "2"]
    exports = {
        f"export {kind}": lambda kind=kind, file=file: export.main(
            [*file, "--format", kind, "--output", f"{out}/{kind}"]
        )
        for kind, file in zip(("csv", "mots", "png", "coco"), ([gt], [results, "--gt", gt]) * 2)
    }
    targets = {"davis": "davis", "mots": "mots-txt", "coco": "coco.json", "ytvis": "ytvis.json"}
    converted = {
        f"convert to {kind}": lambda kind=kind, name=name: convert.main(
            ["ytvis", gt, "--to", kind, "--output", f"{out}/converted/{name}"]
        )
        for kind, name in targets.items()
    }
    drawn = {"analyze": lambda: analyze.main([*both, "--output", f"{out}/analysis"])}
    return {
        **exports,
        **converted,
        **(drawn if number % EACH_ANALYZED == 0 else {}),
        "export alone": lambda: export.main(
            [results, "--format", "coco", "--output", f"{out}/alone"]
        ),
        "draw": lambda: draw.main([gt, *shown, "--png", "--output", f"{out}/drawn"]),
        "draw results": lambda: draw.main(
            [results, "--compare", gt, *shown, "--png", "--output", f"{out}/compared"]
        ),
        "load": lambda: int(load_ytvis_json(gt, frames) is None),
        "check-dataset": lambda: check_dataset.main([gt, "--json", f"{out}/report.json"]),
        "check frames": lambda: check_dataset.main([gt, "--images", frames, "--all"]),
        "check-results": lambda: check_results.main([results, "--gt", gt, "--zip", f"{out}/r.zip"]),
        "split": lambda: split.main([gt, "--val", "0.5", "--output", f"{out}/split"]),
        "stmask": lambda: split.main([gt, "--recipe", "stmask", "--output", f"{out}/stmask"]),
        "strict": lambda: evaluate.main([*both, "--metrics", "ap,hota", "--out", f"{out}/s.json"]),
        "official": lambda: evaluate.main(
            [*both, "--mode", "official", "--out", f"{out}/official.json", "--csv", f"{out}/csv"]
        ),
    }


def run_target(target: Callable[[], int]) -> Tuple[str, str]:
    """What came of it: "0", "1" or "error", and what is wrong with that; empty if nothing."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = target()
        printed.getvalue().encode()  # a terminal must be able to show it
    except UnicodeError as error:
        return "error", f"{type(error).__name__}: {error}"
    except CLEAN as error:
        text = str(error)
        if not text or len(text) > 1500 or "\x00" in text or "\x1b" in text:
            return "error", f"{type(error).__name__} says {text[:200]!r}"
        return "error", "" if _PLACE.search(text) else f"does not say where: {text}"
    except BaseException as error:  # nothing may get away
        return "error", f"{type(error).__name__}: {str(error)[:300]}"
    if "Traceback" in printed.getvalue():
        return str(code), "prints a traceback"
    return str(code), "" if code in (0, 1) else f"exit code {code}"


def _files(root: Path) -> List[str]:
    """Everything below the root except what lies in the folder for output."""
    below = (path.relative_to(root) for path in root.rglob("*"))
    return sorted(str(path) for path in below if path.parts[:2] != ("work", "out"))


def run_case(number: int, root: Path) -> List[str]:
    """Run everything on one case and return what is not as it should be."""
    work = root / "work"
    write_case(number, work)
    shutil.rmtree(work / "out", ignore_errors=True)
    (work / "out").mkdir()
    before, faults, outcome = _files(root), [], {}
    for name, target in _targets(work, number).items():
        outcome[name], fault = run_target(target)
        if fault:
            faults.append(f"case {number}, {name}: {fault}")
    if _files(root) != before:
        faults.append(f"case {number}: files outside the output: {set(_files(root)) - set(before)}")
    if outcome["check-dataset"] == "0":
        accepted = ["load"] + ["strict"] * (outcome["check-results"] == "0")
        refused = [name for name in accepted if outcome[name] != "0"]
        faults += [f"case {number}: nothing wrong found, but {name} refuses it" for name in refused]
    return faults


def main() -> int:
    """Run the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # torch maps a lot
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)  # the traceback, and then the end
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "cwd").mkdir()
        os.chdir(root / "cwd")
        write_sound_set(root / "work")
        for number in range(args.first, args.last):
            print(f"case {number}", file=sys.stderr, flush=True)
            faulthandler.dump_traceback_later(MOST_SECONDS_PER_CASE, exit=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_CASE)
            faults += run_case(number, root)
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
    print("\n".join(faults))
    print(f"cases {args.first} to {args.last}: {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
