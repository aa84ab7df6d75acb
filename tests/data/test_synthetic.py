import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crowdrt.data.heads.folder import photo_folder
from crowdrt.data.synthetic import photographs as synthetic
from crowdrt.data.synthetic.crowd import Person, gather, head_owners, seen_heads
from crowdrt.data.synthetic.people import Wardrobe
from crowdrt.data.synthetic.photographs import crowd_photograph, generate
from crowdrt.data.synthetic.scenery import Camera
from crowdrt.data.synthetic.sprites import FEET, draw_person
from crowdrt.errors import CrowdRTError, DataError

SIZE = (128, 192)
PEOPLE = (12, 45)


def made(folder: Path, num_images: int = 2, seed: int = 7):
    return generate(folder, num_images=num_images, seed=seed, size=SIZE, people=PEOPLE)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def crowd():
    """People as `crowd_photograph` places them: the view, the sprites and the target."""
    rng = np.random.default_rng(3)
    camera, _, people = gather(rng, (288, 432), (120, 200), 150)
    return camera, people


@pytest.mark.parametrize("seed", range(6))
def test_a_photograph_has_a_crowd_in_range_inside_the_image(seed):
    image, heads = crowd_photograph(seed, size=SIZE, people_range=PEOPLE)
    assert image.shape == (3, *SIZE)
    assert image.dtype == np.uint8
    assert image.std() > 15
    assert heads.dtype == np.float32
    assert PEOPLE[0] <= len(heads) <= PEOPLE[1]
    assert (heads >= 0).all()
    assert (heads < (SIZE[1], SIZE[0])).all()
    assert len(np.unique(heads, axis=0)) > 0.95 * len(heads)


def test_an_exact_number_of_people_can_be_asked_for():
    _, heads = crowd_photograph(11, size=SIZE, people_range=(30, 30))
    assert len(heads) == 30


def test_the_default_is_a_few_hundred_people_at_the_default_size():
    image, heads = crowd_photograph(4)
    assert image.shape == (3, 576, 864)
    assert 50 <= len(heads) <= 900


def test_one_seed_is_one_photograph_and_another_seed_is_another():
    first, again = (crowd_photograph(5, size=SIZE, people_range=PEOPLE) for _ in range(2))
    other = crowd_photograph(6, size=SIZE, people_range=PEOPLE)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert np.abs(first[0].astype(int) - other[0]).mean() > 10


def test_a_larger_set_holds_the_smaller_one(tmp_path):
    made(tmp_path / "two", 2)
    made(tmp_path / "three", 3)
    two, three = contents(tmp_path / "two"), contents(tmp_path / "three")
    assert len(two) == 4
    assert len(three) == 6
    assert two.items() <= three.items()


def test_the_files_hold_what_the_samples_say(tmp_path):
    samples = made(tmp_path)
    assert [sample.image.name for sample in samples] == ["crowd_0000.jpg", "crowd_0001.jpg"]
    for sample in samples:
        document = json.loads((tmp_path / f"{sample.image.name}.heads.json").read_text())
        np.testing.assert_array_equal(document["heads"], sample.heads)
        assert document["generator"] == synthetic.GENERATOR
        with Image.open(sample.image) as image:
            assert image.size == (SIZE[1], SIZE[0])
            pixels, _ = crowd_photograph(document["seed"], size=SIZE, people_range=PEOPLE)
            stored = np.asarray(image, int).transpose(2, 0, 1)
        assert np.abs(stored - pixels).mean() < 6  # JPEG


def test_a_folder_reader_finds_the_same_heads(tmp_path):
    samples = made(tmp_path)
    found = photo_folder(tmp_path)
    assert [sample.image for sample in found] == [sample.image for sample in samples]
    for sample, read in zip(samples, found, strict=True):
        np.testing.assert_array_equal(read.heads, sample.heads)


def test_a_second_run_draws_nothing(tmp_path, monkeypatch):
    first = made(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(synthetic, "crowd_photograph", lambda *_, **__: pytest.fail("drawn again"))
    second = made(tmp_path)
    assert contents(tmp_path) == before
    for old, new in zip(first, second, strict=True):
        assert new.image == old.image
        np.testing.assert_array_equal(new.heads, old.heads)


@pytest.mark.parametrize("damage", ["no annotation", "no image", "cut image", "bad json", "list"])
def test_an_interrupted_or_damaged_set_is_completed(tmp_path, damage):
    made(tmp_path)
    before = contents(tmp_path)
    image, annotation = tmp_path / "crowd_0001.jpg", tmp_path / "crowd_0001.jpg.heads.json"
    if damage == "no annotation":
        annotation.unlink()
    elif damage == "no image":
        image.unlink()
    elif damage == "cut image":
        image.write_bytes(image.read_bytes()[:500])
    else:
        annotation.write_text("{" if damage == "bad json" else "[]")
    made(tmp_path)
    assert contents(tmp_path) == before


def test_another_seed_replaces_the_set(tmp_path):
    made(tmp_path, seed=7)
    before = contents(tmp_path)
    made(tmp_path, seed=8)
    after = contents(tmp_path)
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


def test_an_interruption_leaves_no_half_file(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    made(tmp_path, 1)
    monkeypatch.setattr(synthetic, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, 2)
    assert sorted(contents(tmp_path)) == [
        "crowd_0000.jpg",
        "crowd_0000.jpg.heads.json",
        "crowd_0001.jpg",
    ]


def test_annotated_centres_show_their_own_head(crowd):
    camera, people = crowd
    owners = head_owners(people, camera.size)
    centres = {person.head: index for index, person in enumerate(people)}
    own = [
        owners[int(y), int(x)] == centres[int(x), int(y)]
        for x, y in seen_heads(people, camera.size)
    ]
    assert len(own) > 100
    assert np.mean(own) > 0.8


def test_a_covered_head_is_not_annotated():
    rng = np.random.default_rng(0)
    sprite = draw_person(rng, Wardrobe.draw(rng), head_px=20, upright=0.9)
    place = {"sprite": sprite, "left": 30, "top": 20}
    behind = Person(**place, feet_row=200.0)
    before = Person(**place, feet_row=210.0)
    aside = Person(sprite=sprite, left=130, top=20, feet_row=210.0)
    sliver = Person(sprite=sprite, left=32, top=20, feet_row=210.0)
    outside = Person(sprite=sprite, left=-100, top=20, feet_row=210.0)
    assert len(seen_heads([behind], (240, 320))) == 1
    assert len(seen_heads([behind, before], (240, 320))) == 1
    assert len(seen_heads([behind, sliver], (240, 320))) == 1
    assert len(seen_heads([behind, aside], (240, 320))) == 2
    assert len(seen_heads([behind, outside], (240, 320))) == 1


def test_a_head_under_its_own_umbrella_is_not_annotated():
    rng = np.random.default_rng(0)
    wardrobe = replace(Wardrobe.draw(rng), carried=1e6)  # everybody has an umbrella or a placard
    sprites = [draw_person(rng, wardrobe, head_px=20, upright=0.7) for _ in range(40)]
    shown = np.asarray([sprite.head.sum() / sprite.head_area for sprite in sprites])
    assert shown.min() < 0.25
    assert 0.9 < shown.max() < 1.1
    for sprite, share in zip(sprites, shown, strict=True):
        alone = seen_heads([Person(sprite=sprite, left=30, top=0, feet_row=200.0)], (240, 320))
        assert len(alone) == (share >= 0.25)


def test_hidden_people_are_left_out_of_a_dense_crowd():
    size = (192, 288)
    _, _, people = gather(np.random.default_rng(1), size, (240, 270), 255)
    centres = np.asarray([person.head for person in people])
    inside = ((centres >= 0) & (centres < (size[1], size[0]))).all(axis=1)
    assert 240 <= len(seen_heads(people, size)) < inside.sum()


def test_people_nearer_to_the_camera_are_lower_and_larger(crowd):
    _, people = crowd
    rows = np.asarray([person.head[1] for person in people])
    areas = np.asarray([person.sprite.head.sum() for person in people])
    assert [p.feet_row for p in people] == sorted(p.feet_row for p in people)
    assert np.corrcoef(rows, np.sqrt(areas))[0, 1] > 0.7
    low, high = rows > np.quantile(rows, 0.8), rows < np.quantile(rows, 0.2)
    assert areas[low].mean() > 1.8 * areas[high].mean()


@pytest.mark.parametrize("seed", range(5))
def test_a_camera_sees_heads_of_the_size_it_was_asked_for(seed):
    camera = Camera.draw(np.random.default_rng(seed), (576, 864), 14.0)
    assert camera.horizon < camera.far_row
    assert 4 <= camera.head_px(camera.far_row) < camera.head_px(576) < 2.2 * 14
    near, far = (
        camera.ground(np.float32(0), np.float32(576)),
        camera.ground(np.float32(0), np.float32(300)),
    )
    assert near[1] < far[1]


@pytest.mark.parametrize("head_px", [4, 10, 40])
def test_a_person_has_a_head_of_the_size_asked_for(head_px):
    rng = np.random.default_rng(head_px)
    wardrobe = Wardrobe.draw(rng)
    for _ in range(8):
        sprite = draw_person(rng, wardrobe, head_px=head_px, upright=0.9)
        tall = np.ptp(np.flatnonzero(sprite.head.any(axis=1))) + 1
        assert 0.5 * head_px <= tall <= 1.7 * head_px
        assert np.flatnonzero(sprite.alpha.any(axis=1)).max() > 0.75 * FEET * head_px
        assert (sprite.colour <= 255).all()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_images": 0}, "num_images=0"),
        ({"seed": -1}, "seed=-1"),
        ({"size": (64, 864)}, "864x64"),
        ({"people": (0, 10)}, r"people=\(0, 10\)"),
        ({"people": (90, 20)}, r"people=\(90, 20\)"),
        ({"people": (9000, 9001)}, r"people=\(9000, 9001\)"),
    ],
    ids=["images", "seed", "size", "none", "swapped", "crowded"],
)
def test_a_senseless_request_is_refused_with_a_fix(tmp_path, change, problem):
    request = {"num_images": 1, "seed": 0, "size": SIZE, "people": PEOPLE} | change
    with pytest.raises(DataError, match=problem) as caught:
        generate(tmp_path / "set", **request)
    assert caught.value.fix
    assert not (tmp_path / "set").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CrowdRTError, match="file"):
        made(blocked, 1)
