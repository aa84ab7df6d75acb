"""Rows on disk: files named by their photographs, and what a rerun finds left to do."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crowdrt.errors import CrowdRTError, DataError, EngineError
from crowdrt.pipeline.scale.rows import Photo, Row, strips_of, utf8
from crowdrt.pipeline.scale.shards import plan_shards, shard_of, write_shard


def photos(*names, stamp="1 2"):
    return [Photo(name=name, stamp=stamp) for name in names]


def counted(shard, count=1.5, **wrong):
    """Rows of a shard; those named in `wrong` have that error."""
    return [
        Row(
            image=photo.name,
            stamp=photo.stamp,
            count=None if photo.name in wrong else count,
            strips=None if photo.name in wrong else [count, 0.0],
            height=64,
            width=96,
            engine="e",
            error=wrong.get(photo.name),
        )
        for photo in shard.photos
    ]


def rows_in(folder):
    return {
        row["image"]: row for path in folder.glob("*") for row in pq.read_table(path).to_pylist()
    }


def left(folder, names):
    plan = plan_shards(names, folder, engine="e", num_workers=1)
    return sorted(photo.name for shard in plan.shards for photo in shard.photos)


def test_what_was_counted_is_not_done_again_and_a_longer_list_adds_to_it(tmp_path):
    shard = shard_of(photos("b", "c"), tmp_path)
    write_shard(shard, reversed(counted(shard)))
    assert left(tmp_path, photos("b", "c")) == []
    assert left(tmp_path, photos("a", "b", "c", "d")) == ["a", "d"]
    assert plan_shards(photos("a", "b"), tmp_path, engine="e", num_workers=1).num_done == 1
    assert list(rows_in(tmp_path)) == ["b", "c"]  # in the order of the list


def test_the_same_rows_are_the_same_file(tmp_path):
    for folder in ("one", "two"):
        shard = shard_of(photos("b", "c"), tmp_path / folder)
        write_shard(shard, counted(shard))
    one, two = ((tmp_path / name / shard.path.name).read_bytes() for name in ("one", "two"))
    assert one == two
    assert shard_of(photos("c", "b"), tmp_path).path.name != shard.path.name


def test_an_error_is_tried_again_in_its_place(tmp_path):
    shard = shard_of(photos("a", "b", "c"), tmp_path)
    write_shard(shard, counted(shard, b="damaged"))
    (again,) = plan_shards(photos("a", "b", "c"), tmp_path, engine="e", num_workers=1).shards
    assert (again.path, [photo.name for photo in again.photos]) == (shard.path, ["b"])
    write_shard(again, counted(again, count=7.0))
    assert [(n, row["count"]) for n, row in rows_in(tmp_path).items()] == [
        ("a", 1.5),
        ("b", 7.0),
        ("c", 1.5),
    ]
    assert left(tmp_path, photos("a", "b", "c")) == []


def test_a_file_that_changed_is_counted_again_and_one_that_nobody_sees_is_not(tmp_path):
    shard = shard_of(photos("a", "b"), tmp_path)
    write_shard(shard, counted(shard))
    assert left(tmp_path, photos("a") + photos("b", stamp="1 3")) == ["b"]
    assert left(tmp_path, photos("a", "b", stamp=None)) == []


def test_short_lists_are_shared_out_and_long_ones_lose_little_to_a_kill(tmp_path):
    def sizes(number, num_workers):
        names = photos(*map(str, range(number)))
        plan = plan_shards(names, tmp_path, engine="e", num_workers=num_workers)
        assert plan.num_left == number
        return [len(shard.photos) for shard in plan.shards]

    assert sizes(320, 2) == [20] * 16
    assert max(sizes(100_000, 4)) == 256
    assert sizes(20, 8) == [16, 4]


def test_names_that_are_no_text_keep_their_rows(tmp_path):
    shard = shard_of(photos("/a/\udcff.jpg"), tmp_path)
    write_shard(shard, counted(shard))
    assert left(tmp_path, photos("/a/\udcff.jpg")) == []
    assert list(rows_in(tmp_path)) == [r"/a/\udcff.jpg"]


def test_two_names_are_never_one(tmp_path):
    names = [
        "/a/\udcff",
        r"/a/\udcff",
        "/a/\\\udcff",
        r"/a/\\udcff",
        "/a/\\\\\udcff",
        r"/a/b\c",
        "/a/b\\\\c",
    ]
    assert len(set(names)) == len(set(map(utf8, names))) == len(names)
    shard = shard_of(photos(*names), tmp_path)
    write_shard(shard, counted(shard))
    assert left(tmp_path, photos(*names)) == []
    assert utf8(names[-2]) is names[-2]  # not a copy for each of a million
    assert utf8("/a/\xe9") == "/a/\xe9"


def test_counts_of_another_engine_are_refused(tmp_path):
    shard = shard_of(photos("a"), tmp_path)
    write_shard(shard, counted(shard))
    with pytest.raises(EngineError, match="was counted by e, this run counts with f"):
        plan_shards(photos("a"), tmp_path, engine="f", num_workers=1)


def test_a_photograph_in_two_shards_is_refused_with_both(tmp_path):
    one, two = (shard_of(photos(*names), tmp_path) for names in ("ab", "bc"))
    write_shard(one, counted(one))
    write_shard(two, counted(two))
    for wanted in ("a", "abc", "d"):
        with pytest.raises(DataError, match=r"^b has a row in ") as refused:
            left(tmp_path, photos(*wanted))
        assert one.path.name in refused.value.problem
        assert two.path.name in refused.value.problem


def test_a_file_that_is_no_shard_is_named(tmp_path):
    pq.write_table(pa.table({"image": ["a"], "score": [1]}), tmp_path / "theirs.parquet")
    with pytest.raises(DataError, match=r"theirs\.parquet is no file of counts.*image, score"):
        left(tmp_path, photos("a"))


def test_a_shard_that_nobody_may_read_is_not_to_be_removed(tmp_path, monkeypatch):
    shard = shard_of(photos("a"), tmp_path)
    write_shard(shard, counted(shard))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(DataError, match="cannot be opened: Permission denied") as refused:
        left(tmp_path, photos("a"))
    assert "rm " not in refused.value.fix


def test_a_damaged_shard_is_named(tmp_path):
    shard = shard_of(photos("a"), tmp_path)
    write_shard(shard, counted(shard))
    shard.path.write_bytes(shard.path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is damaged") as refused:
        plan_shards(photos("a"), tmp_path, engine="e", num_workers=1)
    assert f"rm '{shard.path}'" in refused.value.fix


def test_a_shard_with_any_byte_changed_is_read_or_refused(tmp_path):
    names = [f"/a/{k}.jpg" for k in range(8)]
    shard = shard_of(photos(*names), tmp_path)
    write_shard(shard, counted(shard))
    table = pq.read_table(shard.path)
    pq.write_table(table, shard.path, compression="none", use_dictionary=False)
    content, refused = shard.path.read_bytes(), 0
    for place in range(0, len(content), 7):
        shard.path.write_bytes(
            content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
        )
        try:
            left(tmp_path, photos(*names))
            write_shard(shard, counted(shard))
        except (DataError, EngineError):  # and nothing else
            refused += 1
    assert refused > 20


def test_a_shard_whose_names_are_no_utf8_is_named(tmp_path):
    shard = shard_of(photos("/a/name.jpg"), tmp_path)
    write_shard(shard, counted(shard))
    pq.write_table(pq.read_table(shard.path), shard.path, compression="none")
    content = shard.path.read_bytes()
    shard.path.write_bytes(content.replace(b"/a/name", b"/a/n\xffme"))
    with pytest.raises(DataError, match="is damaged"):
        left(tmp_path, photos("/a/name.jpg"))


def test_a_shard_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    shard = shard_of(photos("a"), tmp_path)

    def full(table, where, **_):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(CrowdRTError, match="No space left"):
        write_shard(shard, counted(shard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [3, 8, 13, 72])
def test_strips_are_equally_high_and_add_up(rows):
    density = np.random.default_rng(rows).random((rows, 5), np.float32)
    strips = strips_of(density, 8)
    assert len(strips) == 8
    assert sum(strips) == pytest.approx(float(density.sum(dtype=np.float64)))
    assert strips_of(np.ones((rows, 5), np.float32), 8) == pytest.approx([rows * 5 / 8] * 8)


def test_people_are_in_the_strip_where_they_stand():
    density = np.zeros((16, 4), np.float32)
    density[0, 1], density[15, 2], density[6, 0] = 2, 3, 4
    assert strips_of(density, 8) == [2, 0, 0, 4, 0, 0, 0, 3]
    assert strips_of(density[:2], 4) == [1, 1, 0, 0]  # a row of cells is two strips high
