"""What earlier runs of predict.py, and other people, have left in its output folder."""

import json
import re

import numpy as np
import pytest
from predicting import blobs, files_in, load, save

import predict
from parts.errors import UserError
from parts.files import sole_writer

WAYS = ("--overlays", "--probabilities", 8)  # of the earlier run
EACH = {"a.png", "overlays/a.jpg", "probabilities/a.png"}


@pytest.fixture
def out(photos, call, tmp_path):
    """The output folder after a run over a.jpg with overlays, probabilities, scores and a submission in it."""
    out = tmp_path / "out"
    save(tmp_path / "truths" / "a.png", np.full((100, 150), 255, np.uint8))
    call(photos / "a.jpg", *WAYS, "--masks", tmp_path / "truths", "--submission", out / "rows.csv")
    assert names_in(out) == {*EACH, "scores.csv", "worst.png", "rows.csv"}
    return out


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in files_in(folder)}


def listed(folder):
    return json.loads((folder / ".predicted.json").read_text())


def test_files_of_one_checkpoint_and_of_equal_settings_gather(photos, call, out):
    before = names_in(out)
    call(photos / "a.jpg")
    assert names_in(out) == before, "nothing of it is outdated"
    call(photos / "sub")
    call(photos / "grey.png", *WAYS)
    assert names_in(out) == before | {"b.c.png", "grey.png", "overlays/grey.jpg", "probabilities/grey.png"}
    files = listed(out)["sources"]["files"]
    assert set(files) == names_in(out) and all(state for _, _, state in files.values())


def test_files_of_another_checkpoint_or_picture_are_removed_before_new_ones_are_written(
    photos, call, changed, out, capsys
):
    call(photos / "a.jpg", "--checkpoint", changed(epoch=8))
    assert names_in(out) == {"a.png"}
    assert re.search(r"6 outdated files removed \(digest of CHECKPOINT was \w+, now \w+\)", capsys.readouterr().out)
    call(photos / "a.jpg", "--checkpoint", changed(epoch=8), *WAYS)
    save(photos / "a.jpg", blobs(50, 70))
    call(photos / "a.jpg", "--checkpoint", changed(epoch=8))
    assert names_in(out) == {"a.png"} and "3 outdated files removed (pictures have changed)" in capsys.readouterr().out


def test_what_would_be_mixed_is_refused(photos, call, changed, out):
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for inputs, flags in (
        ([photos / "grey.png"], ["--flips", "h"]),
        ([photos / "sub"], ["--checkpoint", changed(epoch=8)]),
    ):
        with pytest.raises(
            UserError, match="(?s)holds 3 files of an earlier run.*mixed.*(FLIPS was None, now h|digest)"
        ):
            call(*inputs, *flags)
    with sole_writer(out), pytest.raises(UserError, match="another run writes here"):
        call(photos / "a.jpg")
    (out / ".lock").write_bytes(before[out / ".lock"])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_files_of_somebody_else_are_neither_replaced_nor_removed(photos, call, changed, out, tmp_path):
    save(out / "overlays" / "a.jpg", blobs(9, 9))  # drawn by hand since then
    save(out / "grey.png", blobs(9, 9))
    (tmp_path / "rows.csv").write_text("img,rle_mask\n")
    kept = {path: path.read_bytes() for path in (out / "grey.png", out / "overlays" / "a.jpg", tmp_path / "rows.csv")}
    for given in (["grey.png"], ["a.jpg", "--overlays"], ["a.jpg", "--submission", tmp_path / "rows.csv"]):
        with pytest.raises(UserError, match=r"(?s)would be replaced.*(grey.png|a.jpg|rows.csv)\. Give"):
            call(photos / given[0], *given[1:])
    call(photos / "a.jpg", "--checkpoint", changed(epoch=8))
    assert names_in(out) == {"a.png", "grey.png", "overlays/a.jpg"}
    assert {path: path.read_bytes() for path in kept} == kept
    for epoch in (8, 9):  # one of its own is replaced
        call(photos / "a.jpg", "--checkpoint", changed(epoch=epoch), "--submission", tmp_path / "own.csv")


def test_a_true_mask_beside_its_picture_is_not_replaced(photos, call, tmp_path):
    save(photos / "a.png", blobs(100, 150))
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    with pytest.raises(UserError, match=r"would be replaced.*photos/a\.png"):
        call(photos / "a.jpg", "--output-dir", photos)
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before
    (photos / "model.pt2").write_text("mine")
    with pytest.raises(UserError, match=r"would be replaced.*photos/model\.pt2"):
        call("--export", photos / "model.pt2", "--output-dir", photos)
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before | {photos / "model.pt2": b"mine"}
    for path in (photos / "a.png", photos / "grey.png", photos / "sub" / "b.c.png"):
        path.unlink()
    for _ in range(2):  # the second time masks of the first lie beside the pictures, and are none
        assert call(photos, "--output-dir", photos, "--overlays")[0] == 0
    assert names_in(photos / "overlays") == {"a.jpg", "palette.jpg", "turned.jpg"}


def test_a_run_that_was_killed_leaves_a_list_of_what_it_was_to_write(photos, call, changed, out, monkeypatch):
    def stop(*given):
        state.append(listed(out)["sources"])
        raise KeyboardInterrupt

    state = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict.Predictor, "run", stop)
        call(photos / "a.jpg", photos / "grey.png", "--checkpoint", changed(epoch=8))
    (files,) = (sources["files"] for sources in state)
    assert names_in(out) == set() and set(files) == {"a.png", "grey.png"}
    assert not any(stamp for _, _, stamp in files.values())
    stored = listed(out)
    save(out / "a.png", blobs(9, 9))  # as if it had been written before it was killed
    (out / ".predicted.json").write_text(json.dumps(stored | {"sources": state[0]}))
    call(photos / "a.jpg", photos / "grey.png", "--checkpoint", changed(epoch=8))
    assert names_in(out) == {"a.png", "grey.png"} and load(out / "a.png").shape == (100, 150)


JUNK = [
    *(b"", b"[" * 100_000, b"\xff\xfe\0", b"[1]", b"{}", b'{"version": 1}'),
    b'{"version": 1, "settings": 3, "sources": 4}',
    b'{"version": 2, "settings": {}, "sources": {"files": {"a.png": 3}}}',
    b'{"version": 2, "settings": {}, "sources": {"files": {"a.png": [[1], {}, {"x": 1}]}}}',
]


def test_a_list_that_came_from_elsewhere_is_believed_within_the_folder_alone(photos, call, changed, out, tmp_path):
    (out / "notes.txt").write_text("mine")
    (tmp_path / "linked").mkdir()
    (out / "link").symlink_to(tmp_path / "linked")
    outside = [tmp_path / "precious.txt", tmp_path / "linked" / "precious.txt"]
    for path in outside:
        path.write_text("mine")
    stored = listed(out)
    names = (
        "../precious.txt",
        str(outside[0]),
        "link/precious.txt",
        "overlays/../../precious.txt",
        "a\0b",
        "",
        "..",
        ".",
    )
    stored["sources"]["files"] |= dict.fromkeys(names, ["", "", None])
    (out / ".predicted.json").write_text(json.dumps(stored))
    call(photos / "a.jpg", "--checkpoint", changed(epoch=8))
    assert all(path.read_text() == "mine" for path in (*outside, out / "notes.txt"))
    for junk in JUNK:
        (out / ".predicted.json").write_bytes(junk)
        with pytest.raises(UserError, match=r"would be replaced.*out/a\.png"):
            call(photos / "a.jpg")
        call(photos / "grey.png", "--output-dir", out)
        (out / "grey.png").unlink()


def test_links_do_not_lead_out_of_the_folder(photos, call, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overlays").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"links in it lead elsewhere, .*out/overlays/a\.jpg\. Remove"):
        call(photos / "a.jpg", "--overlays")
    assert not [*(tmp_path / "elsewhere").iterdir(), *files_in(tmp_path / "out")]
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")  # which is all of it
    call(photos / "a.jpg", "--output-dir", tmp_path / "folder")


def test_what_killed_runs_left_unfinished_goes(photos, call, out):
    for folder in (out, out / "overlays", out / "probabilities"):
        (folder / ".a.png.0123456789ab.part").write_text("x")
    call(photos / "a.jpg", *WAYS)
    assert names_in(out) == {*EACH, "scores.csv", "worst.png", "rows.csv"}


@pytest.mark.parametrize(
    "junk", ["", "[" * 100_000, '{"version": 1, "settings": {}, "sources": {"files": [[1, 2]]}}', "\x00"]
)
def test_junk_in_the_list_counts_as_none(photos, call, out, junk):
    (out / ".predicted.json").write_text(junk)
    with pytest.raises(UserError, match="predict.py has not written them"):
        call(photos / "a.jpg", *WAYS)
