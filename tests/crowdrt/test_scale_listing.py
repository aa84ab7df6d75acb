"""Which photographs folders, lists and URLs name."""

import os
import zipfile
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crowdrt.errors import DataError, MissingDependencyError
from crowdrt.pipeline.scale import stores
from crowdrt.pipeline.scale.listing import list_photographs
from crowdrt.pipeline.scale.stores import images_below, read_file, read_url


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
    parquet(lists, image=["x", " " * 999])
    with pytest.raises(DataError, match=r"row 1 holds ' {80}' where"):
        listed(lists)
    parquet(lists, path=[3])
    with pytest.raises(DataError, match="the column path holds int64 where paths"):
        listed(lists)
    twice = pa.table([pa.array(["x"]), pa.array(["y"])], names=["image", "image"])
    pq.write_table(twice, lists)
    with pytest.raises(DataError, match="has 2 columns image"):
        listed(lists)


def test_a_list_that_holds_photographs_is_refused_before_they_are_read(tmp_path, monkeypatch):
    bytes_and_path = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": b"x", "path": "x.jpg"}], bytes_and_path)  # as Hugging Face has it
    path = parquet(tmp_path / "list.parquet", image=image)
    monkeypatch.delattr(pq.ParquetFile, "read")
    with pytest.raises(DataError, match=r"column image holds struct<bytes: binary, path: string>"):
        listed(path)
    monkeypatch.undo()
    names = pa.array(["/x.jpg"]).dictionary_encode()
    assert listed(parquet(path, image=names)) == ["/x.jpg"]


def test_a_list_of_windows_begins_with_its_first_name(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf/a.jpg\r\n/b.jpg\r\n")
    assert listed(tmp_path / "list.txt") == ["/a.jpg", "/b.jpg"]


def test_the_folder_above_a_link_is_the_one_that_the_system_opens(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder / "sub")
    (tmp_path / "p10.jpg").write_text("another")
    for source in ("link/../p10.jpg", "link/.."):
        found = listed(tmp_path / source)
        assert str(folder / "p10.jpg") in found
        assert str(tmp_path / "p10.jpg") not in found
    assert listed(tmp_path / "link") == [str(tmp_path / "link" / "p1.png")]  # its own name


def test_a_folder_that_nobody_may_read_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"in/sub cannot be opened: Permission denied"):
        listed(folder)


@pytest.mark.parametrize("cut", [0, 3, -9])
def test_a_damaged_parquet_list_is_refused_with_another_way(tmp_path, cut):
    path = parquet(tmp_path / "list.parquet", image=["x"])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"list\.parquet is no Parquet file") as refused:
        listed(path)
    assert "LIST.txt" in refused.value.fix


def test_a_parquet_list_with_any_byte_changed_is_read_or_refused(tmp_path):
    path = parquet(tmp_path / "list.parquet", image=[f"/a/{k}.jpg" for k in range(40)])
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            listed(path)
        except DataError:  # and nothing else
            refused += 1
    assert refused > 20


def test_a_list_that_nobody_may_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = parquet(tmp_path / "list.parquet", image=["/a.jpg"])

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(DataError, match="cannot be opened: Permission denied"):
        listed(path)


@pytest.mark.parametrize(
    ("url", "place", "names"),
    [
        ("ftp://host/dir/", "/dir", ["ftp://host/dir/a.jpg", "ftp://host/dir/sub/b.jpg"]),
        ("s3://bucket", "bucket", ["s3://bucket/a.jpg", "s3://bucket/sub/b.jpg"]),
        ("hdfs://host", "/", ["hdfs://host/a.jpg", "hdfs://host/sub/b.jpg"]),
        ("file:///", "/", ["file:///a.jpg", "file:///sub/b.jpg"]),
        ("memory://", "", ["memory://a.jpg", "memory://sub/b.jpg"]),
    ],
)
def test_names_below_a_url_keep_its_host(url, place, names):
    class Store:
        def find(self, top, **_):
            below = ("a.jpg", "sub/b.jpg", "sub/.c.jpg", ".git/d.jpg", "notes.md")
            return {f"{top.rstrip('/')}/{each}": {} for each in below}

    assert list(images_below(Store(), place, url)) == names


def test_a_folder_in_an_archive_is_refused_and_a_photograph_in_it_is_read(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(folder / "p10.jpg", "in/p10.jpg")
    url = f"::file://{tmp_path}/a.zip"
    assert read_url(f"zip://in/p10.jpg{url}") == b"p10.jpg"
    with pytest.raises(DataError, match="is a folder in an archive"):
        listed(f"zip://in{url}")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://user:SECRET@host/a.jpg",
        "ftp://user:p@SECRET@host/a.jpg",
        "ftp://user:SECRET/x@host/a.jpg",
        "sftp://user:1SECRET/@x@host/a.jpg",
        "HTTPS://SECRET@host/a.jpg",
        "s3://[box]/a.jpg?sig=SECRET",
        "https://h/a.jpg#b?sig=SECRET",
        "https://SECRET@host/a.jpg",
        "zip://a.jpg::ftp://user:SECRET@host/a.zip",
        "https://host/a.jpg?X-Amz-Signature=SECRET&x=1",
        "https://account.example/a.jpg?sv=1&sig=SECRET",
    ],
)
def test_secrets_in_a_url_are_refused_and_not_repeated(tmp_path, url):
    (tmp_path / "list.txt").write_text(url)
    for source in (url, tmp_path / "list.txt"):
        with pytest.raises(DataError, match=r"holds a user|is signed") as refused:
            listed(source)
        assert "SECRET" not in str(refused.value)
        assert "to the environment" in refused.value.fix


def test_names_with_an_account_or_a_question_are_no_secrets(tmp_path):
    names = [
        "abfs://box@account.example/a.jpg",
        "s3://bucket/a@b:c.jpg",
        "https://h/a.jpg?w=2",
        "http://host:8080/a@b.jpg",
        "s3://arn:aws:s3:eu-1:12:accesspoint/in/a@b.jpg",
    ]
    (tmp_path / "list.txt").write_text("\n".join(names))
    assert listed(tmp_path / "list.txt") == names


def test_names_with_brackets_are_names(tmp_path):
    names = ["http://[bad/a.jpg", "s3://[photos]/a.jpg", f"zip://IMG[1.jpg::{tmp_path}/x.zip"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    assert listed(tmp_path / "list.txt") == names
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("IMG[1.jpg", b"pixels")
    assert read_url(names[2]) == b"pixels"


def test_what_is_empty_or_too_long_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "empty.jpg").touch()
    with (tmp_path / "long.jpg").open("wb") as file:
        file.truncate(50 << 30)  # no blocks on the disk
    for read, top in ((read_file, tmp_path), (read_url, f"file://{tmp_path}")):
        with pytest.raises(DataError, match="is empty"):
            read(type(top)(f"{top}/empty.jpg"))
        with pytest.raises(DataError, match="more than 1,073,741,824 bytes"):
            read(type(top)(f"{top}/long.jpg"))
    monkeypatch.setattr(stores, "MAX_BYTES", 4)
    monkeypatch.setattr(os, "fstat", lambda _: SimpleNamespace(st_size=1))  # it grows meanwhile
    (tmp_path / "grows.jpg").write_bytes(b"12345")
    with pytest.raises(DataError, match="more than 4 bytes"):
        read_file(tmp_path / "grows.jpg")


def test_what_a_store_sends_is_read_to_its_end_and_not_beyond(monkeypatch):
    import fsspec

    monkeypatch.setattr(stores, "MAX_BYTES", 4)
    store = fsspec.filesystem("memory")
    for content in (b"", b"1234", b"12345"):
        store.pipe_file("/crowdrt-listing.jpg", content)
        if len(content) == 4:
            assert read_url("memory://crowdrt-listing.jpg") == content
            continue
        with pytest.raises(DataError, match=r"is empty|more than 4 bytes"):
            read_url("memory://crowdrt-listing.jpg")
    parts = iter([b"1", b"23", b""])
    slow = SimpleNamespace(read=lambda _: next(parts))
    assert stores.read_at_most(slow, 5) == b"123"


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
