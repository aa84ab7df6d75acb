"""Two Ray nodes count real photographs while processes and a node are killed: minutes.

    pytest -m slow tests/crowdrt/test_two_nodes.py -s

$CROWDRT_NUM_PHOTOGRAPHS says how many names the photographs get; 2,000 where it is not set.
"""

import os
import random

import pyarrow.parquet as pq
import pytest
from clusters import SMALL, actors, kill_actor, ray_cluster

from crowdrt.pipeline.scale import run as runs
from crowdrt.pipeline.scale import shards
from crowdrt.pipeline.scale.counting import Counter, Settings
from crowdrt.pipeline.scale.listing import list_photographs
from crowdrt.pipeline.scale.run import count_at_scale
from crowdrt.pipeline.stages import build_stage

NUM_PHOTOGRAPHS = int(os.environ.get("CROWDRT_NUM_PHOTOGRAPHS", "2000"))
NUM_SHARDS = 40
NUM_KILLED = 5
NODE_GOES = 20  # after so many shards


@pytest.fixture
def photos(data_root, tmp_path):
    """ShanghaiTech's test photographs under as many names as are wanted."""
    images = sorted(data_root.glob("ShanghaiTech/part_*/test_data/images/*.jpg"))
    (tmp_path / "photos").mkdir()
    for k in range(NUM_PHOTOGRAPHS):
        (tmp_path / "photos" / f"{k}.jpg").symlink_to(images[k % len(images)])
    return tmp_path / "photos"


def counted_alone(settings, photos):
    """What one process counts, each photograph once, whatever its names."""
    files = {path.resolve() for path in photos.iterdir()}
    rows = Counter(settings).count(list_photographs(map(str, files)))
    counts = {row.image: row.count for row in rows}
    return {str(path): counts[str(path.resolve())] for path in photos.iterdir()}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.data
def test_every_photograph_is_counted_once_whoever_dies(student_onnx, photos, tmp_path, monkeypatch):
    build_stage(student_onnx, tmp_path / "store")
    settings = Settings(engine=student_onnx, store=tmp_path / "store")
    write, written, killed, there = runs.write_shard, [], [], set()
    when = set(random.Random(0).sample(range(1, NUM_SHARDS - 4), NUM_KILLED))
    monkeypatch.setattr(shards, "MAX_ROWS", -(-NUM_PHOTOGRAPHS // NUM_SHARDS))
    monkeypatch.setattr(shards, "MIN_ROWS", shards.MAX_ROWS)

    with ray_cluster(num_cpus=1) as cluster:
        second = cluster.add_node(num_cpus=1, **SMALL)

        def write_and_kill(*args):
            write(*args)
            written.append(None)
            there.update(actors(node=second) if len(written) <= NODE_GOES else ())
            if len(written) in when:
                killed.append(kill_actor(len(killed)))
            if len(written) == NODE_GOES:
                cluster.remove_node(second, allow_graceful=False)

        monkeypatch.setattr(runs, "write_shard", write_and_kill)
        tally = count_at_scale([str(photos)], tmp_path / "out", settings, cluster=cluster.address)
    print(f"\n{tally}\nkilled: {killed}, and a node; {tally.per_s:.1f} images/s with all that")
    assert there  # actors ran on the node that went
    assert len(set(killed)) == NUM_KILLED
    assert not actors()
    assert (tally.num_counted, tally.num_errors) == (NUM_PHOTOGRAPHS, 0)
    files = (tmp_path / "out" / "counts").glob("*.parquet")
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert len(rows) == NUM_PHOTOGRAPHS
    assert {row["image"]: row["count"] for row in rows} == counted_alone(settings, photos)
