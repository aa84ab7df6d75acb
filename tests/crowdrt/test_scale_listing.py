"""Which photographs folders, lists and URLs name."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crowdrt.errors import DataError, MissingDependencyError
from crowdrt.pipeline.scale.listing import list_photographs
from crowdrt.pipeline.scale.stores import read_url


@pytest.fixture
def folder(tmp_path):
    """Photographs at several depths, and what is none."""
    for name in ("p10.jpg", "p2.JPG", "sub/p1.png", ".hidden.jpg", ".git/p.jpg", "notes.md"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    return tmp_path / "in"


INSIDE = ["p2.JPG", "p10.jpg", "sub/p1.png"]


def listed(*sources):
    return [photo.name for photo in list_photographs(map(str, sources))]


def parquet(path, /, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_a_folder_is_read_at_any_depth_in_natural_order(folder, monkeypatch):
    assert listed(folder) == [str(folder / name) for name in INSIDE]
    monkeypatch.chdir(folder.parent)
    assert listed("in") == listed(folder)  # one name, from wherever it is called


def test_a_name_is_listed_once(folder):
    again = folder / "sub" / ".." / "p10.jpg"
    assert listed(folder / "p10.jpg", folder, again) == [
        str(folder / name) for name in ("p10.jpg", "p2.JPG", "sub/p1.png")
    ]


def test_a_file_that_changes_gets_another_stamp(folder):
    (before,) = list_photographs([str(folder / "p10.jpg")])
    os.utime(folder / "p10.jpg", ns=(0, 1))
    (after,) = list_photographs([str(folder / "p10.jpg")])
    assert before.stamp != after.stamp


@pytest.mark.parametrize("column", ["image", "path"])
def test_lists_name_what_is_there_and_what_is_not(folder, tmp_path, column, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["in/p10.jpg", "gone.jpg", "s3://bucket/p.jpg"]
    whole = [str(folder / "p10.jpg"), str(tmp_path / "gone.jpg"), "s3://bucket/p.jpg"]
    (tmp_path / "list.txt").write_text("\r\n".join(["", *names, "in/p10.jpg", ""]))
    parquet(tmp_path / "list.parquet", other=[1, 2, 3], **{column: names})
    assert listed("list.txt") == listed("list.parquet") == whole
    assert [photo.stamp is None for photo in list_photographs(["list.txt"])] == [False, True, True]


def test_bad_lists_are_refused(folder, tmp_path):
    lists = tmp_path / "list.parquet"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    cases = {
        "does not exist": tmp_path / "gone",
        "empty names no photographs": tmp_path / "empty",
        "empty.txt names no photographs": tmp_path / "empty.txt",
        "no column image or path, only a": parquet(lists, a=["x"]),
    }
    for problem, source in cases.items():
        with pytest.raises(DataError, match=problem):
            listed(source)
    parquet(lists, image=["x", None])
    with pytest.raises(DataError, match="row 1 holds None"):
        listed(lists)
    parquet(lists, path=[3])
    with pytest.raises(DataError, match="row 0 holds 3"):
        listed(lists)


@pytest.mark.parametrize("cut", [0, 3, -9])
def test_a_damaged_parquet_list_is_refused_with_another_way(tmp_path, cut):
    path = parquet(tmp_path / "list.parquet", image=["x"])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"list\.parquet is no Parquet file") as refused:
        listed(path)
    assert "LIST.txt" in refused.value.fix


def test_urls_are_folders_files_and_lists(folder, tmp_path):
    url = f"file://{folder}"
    assert sorted(listed(url)) == sorted(f"{url}/{name}" for name in INSIDE)
    assert listed(f"{url}/p10.jpg") == [f"{url}/p10.jpg"]
    assert read_url(f"{url}/p10.jpg") == b"p10.jpg"
    assert all(photo.stamp for photo in list_photographs([url]))
    parquet(tmp_path / "list.parquet", image=["/a.jpg"])
    (tmp_path / "list.txt").write_text("/b.jpg\n")
    assert listed(f"file://{tmp_path}/list.parquet", f"file://{tmp_path}/list.txt") == [
        "/a.jpg",
        "/b.jpg",
    ]


def test_urls_that_lead_nowhere_are_refused(tmp_path):
    with pytest.raises(DataError, match="gone does not exist"):
        listed(f"file://{tmp_path}/gone")
    with pytest.raises(DataError, match="Protocol not known"):
        listed("nothing-like-this://bucket/photos")


def test_a_store_whose_library_is_missing_says_which(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(MissingDependencyError, match="s3fs") as refused:
        listed("s3://bucket/photos")
    assert "pip install" in refused.value.fix
