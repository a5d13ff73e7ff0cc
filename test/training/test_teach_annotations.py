import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from training.data import photo_store
from training.data.photo_store import StoreError, content_hash, find_photos
from training.data.teacher_store import TeacherEntry, TeacherStore, borders, compact
from training.teach import app

REPOSITORY = Path(__file__).parents[2]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def label_map(seed, size=(40, 30), regions=5):
    """A map (H, W) of vertical strips with ids 1..regions in an order of its own."""
    width, height = size
    ids = np.random.default_rng(seed).permutation(regions) + 1
    return np.repeat(ids[np.arange(width) * regions // width][None], height, 0).astype(np.uint16)


@pytest.fixture
def data(tmp_path):
    """Folders photos/ and segments/: two good photographs, one unreadable, one without segmentation."""
    photos, segments = tmp_path / "photos", tmp_path / "segments"
    for name, annotators in (("a", 3), ("sub/b", 1), ("broken", 1), ("plain", 0)):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        image = np.full((30, 40, 3), 128, np.uint8)
        cv2.imwrite(str(photos / f"{name}.jpg"), image)
        for k in range(annotators):
            (segments / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(segments / name / f"{k}.png"), label_map(k, regions=3 + 2 * (k % 2) + k))
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no photograph")
    return tmp_path


def test_maps_are_stored_as_they_are(data):
    result = run("annotations", data / "photos", data / "segments", data / "store")
    assert result.exit_code == 0
    assert "2 photographs written" in result.output and "1 have no segmentation" in result.output
    store = TeacherStore(data / "store")
    assert store.names() == ["a", "sub/b"]
    entry = store.entry("a")
    assert entry.image_size == (40, 30) and entry.embedding is None
    assert entry.teacher == "annotations" and entry.sources == ("0.png", "1.png", "2.png")
    assert entry.groups.dtype == np.uint16
    for k in range(3):
        np.testing.assert_array_equal(entry.groups[k], label_map(k, regions=3 + 2 * (k % 2) + k))
        np.testing.assert_array_equal(entry.edges[k], borders(entry.groups[k]))
    assert (data / "store" / "skipped-0-of-1.txt").read_text().startswith("broken: cannot be decoded")


@pytest.mark.parametrize("annotator, expected", [("finest", "1.png"), ("coarsest", "0.png"), ("2", "2.png")])
def test_choice_of_annotator(data, annotator, expected):
    result = run("annotations", data / "photos", data / "segments", data / "store", "--annotator", annotator)
    assert result.exit_code == 0
    assert TeacherStore(data / "store").entry("a").sources == (expected,)


def test_unusable_segmentations_are_listed_and_skipped(data):
    cv2.imwrite(str(data / "segments/a/1.png"), label_map(1, size=(41, 30)))
    cv2.imwrite(str(data / "segments/a/2.png"), np.zeros((30, 40, 3), np.uint8))
    (data / "segments/sub/b/0.png").write_bytes(b"")
    result = run("annotations", data / "photos", data / "segments", data / "store")
    assert result.exit_code == 0
    store = TeacherStore(data / "store")
    assert store.names() == ["a"] and store.entry("a").sources == ("0.png",)
    skipped = (data / "store" / "skipped-0-of-1.txt").read_text()
    assert f"{data}/segments/a/1.png is 41x30 and the photograph 40x30" in skipped
    assert "a/2.png is not an 8- or 16-bit image of one channel" in skipped
    assert "sub/b/0.png cannot be decoded" in skipped and "sub/b: no usable segmentation" in skipped


def test_one_map_beside_the_name_of_the_photograph(data):
    """The layout another segmenter writes: one file per photograph, found by its stem in a flat folder."""
    (data / "flat").mkdir()
    cv2.imwrite(str(data / "flat/b.png"), label_map(0).astype(np.uint8) - 1)
    assert run("annotations", data / "photos", data / "flat", data / "store").exit_code == 0
    groups = TeacherStore(data / "store").entry("sub/b").groups[0]
    np.testing.assert_array_equal(groups, label_map(0) - 1)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("nowhere", "segments", "store"), "nowhere: no such folder of photographs"),
        (("photos", "nowhere", "store"), "nowhere: no such folder of segmentations"),
        (("segments/a", "photos", "store"), "no segmentation of any of the 3 photographs"),
        (("photos", "segments", "photos/a.jpg"), "a.jpg: cannot be written"),
    ],
)
def test_what_cannot_run_says_so_in_one_line(data, monkeypatch, arguments, expected):
    monkeypatch.chdir(data)
    result = run("annotations", *arguments)
    assert result.exit_code == 1
    assert expected in result.output and result.output.count("\n") == 1


def test_only_bad_photographs_is_a_failure(data):
    for name in ("a", "sub/b"):
        (data / f"photos/{name}.jpg").write_bytes(b"")
    result = run("annotations", data / "photos", data / "segments", data / "store")
    assert result.exit_code == 1 and "0 photographs written" in result.output


def test_two_files_of_one_name(data):
    (data / "photos/a.png").write_bytes((data / "photos/a.jpg").read_bytes())
    with pytest.raises(StoreError, match="a.png and a.jpg have the same name"):
        find_photos(data / "photos")


def test_other_settings_or_another_store_are_refused(data):
    arguments = ("annotations", data / "photos", data / "segments", data / "store")
    assert run(*arguments).exit_code == 0
    result = run(*arguments, "--annotator", "finest")
    assert result.exit_code == 1 and "annotator = 'all' (now 'finest')" in result.output
    (data / "store/store.json").write_text(json.dumps({"format": "recipes", "version": 1, "settings": {}}))
    assert "holds 'recipes' version 1, expected 'samfeat teacher' version 1" in run(*arguments).output
    (data / "store/store.json").write_text("{")
    assert "not readable as a samfeat teacher's manifest" in run(*arguments).output


def test_a_damaged_entry_is_made_again(data):
    arguments = ("annotations", data / "photos", data / "segments", data / "store")
    run(*arguments)
    entry = data / "store/a.npz"
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="a.npz: not readable"):
        TeacherStore(data / "store").entry("a")
    result = run(*arguments)
    assert "1 photographs written, 1 were there" in result.output
    assert entry.read_bytes() == whole


def test_ranks_share_the_work(data, monkeypatch):
    (data / "photos/broken.jpg").write_bytes((data / "photos/a.jpg").read_bytes())
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, written in (("0", 2), ("1", 1)):
        monkeypatch.setenv("RANK", rank)
        result = run("annotations", data / "photos", data / "segments", data / "store")
        assert f"{written} photographs written, 0 were there" in result.output
    assert TeacherStore(data / "store").names() == ["a", "broken", "sub/b"]
    monkeypatch.setenv("RANK", "2")
    assert "RANK=2 is not below" in run("annotations", data / "photos", data / "segments", data / "store").output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(data):
    """The temporary file of one entry is a link to /dev/full, so that writing it fails as on a full disk."""
    arguments = ("annotations", data / "photos", data / "segments", data / "store")
    (data / "store/sub").mkdir(parents=True)
    (data / "store/sub/.b.partial.npz").symlink_to("/dev/full")
    result = run(*arguments)
    assert result.exit_code == 1
    assert "sub/b.npz: the disk is full" in result.output and "Traceback" not in result.output
    assert TeacherStore(data / "store").names() == ["a"]
    assert run(*arguments).exit_code == 0
    assert TeacherStore(data / "store").names() == ["a", "sub/b"]


def test_killed_at_any_moment_it_continues(tmp_path):
    photos, segments = tmp_path / "photos", tmp_path / "segments"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(1, 500, (2, 200, 300), dtype=np.uint16)
    for i in range(40):
        cv2.imwrite(str(photos / f"{i:02}.png"), np.zeros((200, 300, 3), np.uint8))
        (segments / f"{i:02}").mkdir(parents=True)
        for k in range(2):
            cv2.imwrite(str(segments / f"{i:02}" / f"{k}.png"), np.roll(noise[k], i))

    def start(store):
        command = [sys.executable, "-m", "training.teach", "annotations", photos, segments, tmp_path / store]
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    for wanted in (3, 12):
        process = start("killed")
        deadline = time.monotonic() + 60
        store = TeacherStore(tmp_path / "killed")
        while len(store.names()) < wanted and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.003)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        names = store.names()
        assert wanted <= len(names) < 40
        assert all(store.entry(name).groups.shape == (2, 200, 300) for name in names)

    output = start("killed").communicate()[0]
    assert f"{40 - len(names)} photographs written, {len(names)} were there" in output
    start("whole").communicate()
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(files) == 41
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()} == files


def test_entry_comes_back_as_written(tmp_path):
    random = np.random.default_rng(0)
    store = TeacherStore(tmp_path / "store")
    store.create({"teacher": "test"})
    entry = TeacherEntry(
        groups=random.integers(0, 65536, (2, 5, 13), dtype=np.uint16),
        edges=random.random((2, 5, 13)) > 0.5,
        embedding=random.standard_normal((256, 64, 64)).astype(np.float16),
        teacher="test",
        sources=("x", "y"),
    )
    store.write("deep/name.with.dots", entry.arrays(), entry.meta())
    assert store.names() == ["deep/name.with.dots"] and "deep/name.with.dots" in store
    back = store.entry("deep/name.with.dots")
    np.testing.assert_array_equal(back.groups, entry.groups)
    np.testing.assert_array_equal(back.edges, entry.edges)
    np.testing.assert_array_equal(back.embedding, entry.embedding)
    assert back.sources == ("x", "y") and back.embedding.dtype == np.float16
    assert store.entry("deep/name.with.dots", embedding=False).embedding is None
    with pytest.raises(StoreError, match="no entry for other"):
        store.entry("other")


def test_find_by_the_photographs_path(data):
    run("annotations", data / "photos", data / "segments", data / "store")
    store = TeacherStore(data / "store")
    assert store.find(data / "photos/sub/b.jpg") == "sub/b" and store.find("sub/b.jpg") == "sub/b"
    assert store.find(data / "photos/a.jpg") == "a" and store.find("/elsewhere/a.png") == "a"
    assert store.find(data / "photos/plain.jpg") is None and store.find("/b.jpg") is None


def test_an_entry_is_only_that_of_the_same_content(data):
    run("annotations", data / "photos", data / "segments", data / "store")
    store, photo = TeacherStore(data / "store"), data / "photos/a.jpg"
    assert store.find(photo, content_hash(photo)) == "a"
    assert store.find(photo, "of another") is None
    arrays, meta = store.read("a")
    del meta["content"]
    store.write("a", arrays, meta)  # as stores were before
    assert store.find(photo, "of another") == "a"


def test_borders_by_hand():
    labels = np.array([[1, 1, 2], [1, 1, 2], [3, 3, 2]])
    expected = np.array([[0, 1, 1], [1, 1, 1], [1, 1, 1]], bool)
    np.testing.assert_array_equal(borders(labels), expected)
    assert not borders(np.full((4, 5), 7)).any()


def test_compact():
    labels = np.array([[0, 7, 65535], [7, 3, 0]], np.uint16)
    np.testing.assert_array_equal(compact(labels), [[0, 2, 3], [2, 1, 0]])
    np.testing.assert_array_equal(compact(np.array([[5, 5]], np.uint8)), [[1, 1]])


def test_time_and_disk_of_all_are_said_after_the_first(data, monkeypatch, capsys):
    monkeypatch.setattr(photo_store, "TIMED", 1)
    photos = find_photos(data / "photos")[:2]
    store = TeacherStore(data / "store")
    store.create({})

    def work(photo, note):
        time.sleep(0.2)
        return {"embedding": np.zeros((256, 64, 64), np.float16)}, {"width": 40, "height": 30}

    photo_store.fill(store, photos, work, "test")
    (line,) = capsys.readouterr().out.splitlines()
    seconds, megabytes, number = (
        float(x) for x in re.findall(r"([\d.]+) s and ([\d.]+) MB .* the (\d+) here", line)[0]
    )
    assert 0.2 <= seconds < 2 and megabytes == 2.1 and number == 2
    assert line.endswith("0.0042 GB")
