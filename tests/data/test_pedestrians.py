"""Generated pedestrians: a box around everybody, and files that are kept or made again."""

import json

import numpy as np
import pytest

from crowdrt.data.boxes.datasets import open_box_samples
from crowdrt.data.synthetic import pedestrians
from crowdrt.data.synthetic.crowd import Person, seen_heads
from crowdrt.data.synthetic.pedestrians import ANNOTATION, generate_pedestrians, person_boxes
from crowdrt.data.synthetic.sprites import Sprite
from crowdrt.errors import DataError

SIZE = (128, 160)


def standing(
    left: int, top: int, *, width: int = 10, height: int = 30, head: bool = True
) -> Person:
    """A rectangle, with a head of one pixel unless it is a thing."""
    alpha = np.zeros((height + 4, width + 4), np.float32)
    alpha[2:-2, 2:-2] = 1  # a sprite has a margin
    heads = np.zeros(alpha.shape, np.bool_)
    heads[2, 2] = head
    sprite = Sprite(
        colour=np.zeros((*alpha.shape, 3), np.float32),
        alpha=alpha,
        shadow=alpha,
        head=heads,
        head_area=1,
        centre=(2, 2),
    )
    return Person(sprite=sprite, left=left - 2, top=top - 2, feet_row=top + height)


def test_boxes_by_hand():
    """One stands free; one is half behind another; one is nearly, one wholly behind a post."""
    people = [
        standing(0, 0),
        standing(50, 20),
        standing(55, 40),
        standing(100, 30),
        standing(130, 30),
        standing(102, 20, width=20, height=50, head=False),
        standing(120, 20, width=20, height=50, head=False),
        standing(155, 90, width=10, height=60),
    ]
    free, half, front, nearly, cut = person_boxes(people, SIZE)
    assert free["fbox"] == free["vbox"] == [0, 0, 10, 30]
    assert half["fbox"] == [50, 20, 10, 30]
    assert half["vbox"] == [50, 20, 10, 30]  # of an L, the box is the whole
    assert front["fbox"] == [55, 40, 10, 30]
    assert nearly["vbox"] == [100, 30, 2, 30]  # 20 %
    assert cut["fbox"] == [155, 90, 10, 60]  # beyond the photograph, as in CrowdHuman
    assert cut["vbox"] == [155, 90, 5, 38]
    ignored = [each["extra"]["ignore"] for each in (free, half, front, nearly, cut)]
    assert ignored == [0, 0, 0, 1, 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pedestrians")
    return folder, generate_pedestrians(folder, num_images=2, seed=3, size=SIZE, people=(3, 6))


def test_whoever_reads_crowdhuman_reads_them(made):
    folder, samples = made
    again = open_box_samples(folder / ANNOTATION)
    for one, other in zip(samples, again, strict=True):
        assert one.image == other.image
        np.testing.assert_array_equal(one.boxes, other.boxes)
        assert one.annotated >= 2
        sides = one.boxes[:, 2:] - one.boxes[:, :2]
        assert (sides[:, 1] > sides[:, 0]).mean() > 0.5  # people stand
    assert not np.array_equal(samples[0].boxes, samples[1].boxes)


def test_every_seen_head_is_in_a_box_of_its_own():
    _, people = pedestrians.photograph(5, size=SIZE, people_range=(3, 6))
    boxes = np.array([each["fbox"] for each in person_boxes(people, SIZE)])
    heads = seen_heads(people, SIZE)
    assert len(boxes) >= len(heads) >= 3
    inside = (heads[:, None] >= boxes[None, :, :2]) & (
        heads[:, None] < boxes[None, :, :2] + boxes[None, :, 2:]
    )
    assert inside.all(axis=2).any(axis=1).all()


def test_a_larger_set_holds_the_smaller(made, tmp_path):
    more = generate_pedestrians(tmp_path, num_images=3, seed=3, size=SIZE, people=(3, 6))
    for one, other in zip(made[1], more[:2], strict=True):
        assert one.image.read_bytes() == other.image.read_bytes()
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_undamaged_files_are_kept_and_damaged_ones_made_again(made, monkeypatch):
    folder, samples = made
    about = {"num_images": 2, "seed": 3, "size": SIZE, "people": (3, 6)}
    content = samples[0].image.read_bytes()
    samples[0].image.write_bytes(content[:-9])
    assert generate_pedestrians(folder, **about)[0].image.read_bytes() == content
    monkeypatch.setattr(pedestrians, "photograph", lambda *_, **__: pytest.fail("drawn again"))
    assert len(generate_pedestrians(folder, **about)) == 2
    assert len((folder / ANNOTATION).read_text().splitlines()) == 2
    assert json.loads((folder / ANNOTATION).read_text().splitlines()[0])["gtboxes"]


def test_a_set_of_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="num_images=0"):
        generate_pedestrians(tmp_path, num_images=0, seed=1)
    assert not any(tmp_path.iterdir())
