import json

import numpy as np
import pytest

from crowdrt.data.heads.folder import heads_path, photo_folder
from crowdrt.errors import DataError


def test_heads_are_read_where_they_are_known(tmp_path, photo):
    known, empty = photo(tmp_path / "a.jpg"), photo(tmp_path / "b.png")
    photo(tmp_path / "c.png")
    heads_path(known).write_text(json.dumps({"heads": [[1.5, 2], [3, 4]], "seed": 7}))
    heads_path(empty).write_text('{"heads": []}')

    samples = photo_folder(tmp_path)

    assert heads_path(known).name == "a.jpg.heads.json"
    assert [sample.image.name for sample in samples] == ["a.jpg", "b.png", "c.png"]
    assert [sample.annotated for sample in samples] == [2, 0, None]
    np.testing.assert_array_equal(samples[0].heads, np.float32([[1.5, 2], [3, 4]]))
    assert samples[1].heads.shape == (0, 2)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no json",
        "[[1, 2]]",
        "{}",
        '{"heads": null}',
        '{"heads": 3}',
        '{"heads": {"x": 1}}',
        '{"heads": [1, 2]}',
        '{"heads": [[], []]}',
        '{"heads": [[1, 2, 3]]}',
        '{"heads": [[1, 2], [3]]}',
        '{"heads": [["left", 2]]}',
        '{"heads": [[NaN, 2]]}',
        '{"heads": [[1e300, 2]]}',
        '{"heads": [[1%s, 2]]}' % ("0" * 400),
        "[" * 100_000,
        "\xff\xfe",
    ],
    ids=lambda content: content[:24] or "empty",
)
def test_heads_that_cannot_be_read(tmp_path, photo, content):
    path = heads_path(photo(tmp_path / "a.jpg"))
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        photo_folder(tmp_path)
    assert str(path) in caught.value.problem
    assert '{"heads": [[x, y], ...]}' in caught.value.fix


def test_a_folder_in_place_of_the_heads(tmp_path, photo):
    heads_path(photo(tmp_path / "a.jpg")).mkdir()
    with pytest.raises(DataError, match=r"a\.jpg\.heads\.json"):
        photo_folder(tmp_path)
