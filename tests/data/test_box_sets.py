"""Boxes from CrowdHuman, COCO and MOT: what is read, and what is refused with its place."""

import json

import numpy as np
import pytest

from crowdrt.data.boxes.datasets import BoxOptions, open_box_samples
from crowdrt.errors import DataError

PERSON = {
    "tag": "person",
    "fbox": [-2, 3, 10, 20],
    "vbox": [1, 3, 7, 15],
    "hbox": [2, 3, 4, 5],
    "extra": {"box_id": 0, "occ": 1},
}
SEQINFO = "[Sequence]\nname=MOT17-99\nimDir=img1\nframeRate=30\nseqLength=600\n"


@pytest.fixture
def odgt(tmp_path, photo):
    """Writes annotation_val.odgt, one line per (id, boxes), with its images in Images/."""

    def write(*lines, missing=()):
        path = tmp_path / "annotation_val.odgt"
        texts = [
            x if isinstance(x, str) else json.dumps({"ID": x[0], "gtboxes": x[1]}) for x in lines
        ]
        path.write_text("\n".join(texts) + "\n")
        for line in lines:
            if not isinstance(line, str) and line[0] not in missing:
                photo(tmp_path / "Images" / f"{line[0]}.jpg")
        return path

    return write


@pytest.fixture
def coco_file(tmp_path, photo):
    """Writes annotations/instances_val2017.json with its images in val2017/."""

    def write(*annotations, **changes):
        path = tmp_path / "annotations" / "instances_val2017.json"
        path.parent.mkdir(exist_ok=True)
        document = {
            "images": [{"id": 7, "file_name": "a.jpg"}],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
        }
        path.write_text(json.dumps(document | changes))
        photo(tmp_path / "val2017" / "a.jpg")
        return path

    return write


@pytest.fixture
def sequence(tmp_path, photo):
    """Writes a MOT sequence of three frames."""

    def write(rows, *, seqinfo=SEQINFO, frames=(1, 2, 10)):
        folder = tmp_path / "MOT17-99"
        for frame in frames:
            photo(folder / "img1" / f"{frame:06}.jpg")
        (folder / "seqinfo.ini").write_text(seqinfo)
        if rows is not None:
            (folder / "gt").mkdir()
            (folder / "gt" / "gt.txt").write_text(rows)
        return folder

    return write


def refusal(path, options=BoxOptions()) -> DataError:  # noqa: B008 - frozen
    with pytest.raises(DataError) as caught:
        open_box_samples(path, options)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("kind", "box"),
    [("full", [-2, 3, 8, 23]), ("visible", [1, 3, 8, 18]), ("head", [2, 3, 6, 8])],
)
def test_crowdhuman_has_three_boxes_per_person(odgt, kind, box):
    path = odgt(("273271,1a0d", [PERSON]), ("b", []))
    first, second = open_box_samples(path, BoxOptions(box=kind))
    assert first.image == path.parent / "Images" / "273271,1a0d.jpg"
    np.testing.assert_array_equal(first.boxes, [box])
    assert (first.boxes.dtype, first.labels.tolist(), first.annotated) == ("float32", [0], 1)
    assert (second.annotated, second.boxes.shape) == (0, (0, 4))


def test_crowdhuman_leaves_out_masks_and_the_ignored(odgt):
    mask = {"tag": "mask", "fbox": [0, 0, 9, 9], "hbox": [0, 0, 0, 0], "extra": {"ignore": 1}}
    hidden = PERSON | {"extra": {"ignore": 1}}
    headless = PERSON | {"head_attr": {"ignore": 1}}
    path = odgt(("a", [mask, PERSON, hidden, headless]))
    (full,) = open_box_samples(path)
    assert full.ignore.tolist() == [True, False, True, False]
    assert full.annotated == 2
    (heads,) = open_box_samples(path, BoxOptions(box="head"))
    assert heads.ignore.tolist() == [False, True, True]  # the mask's head covers nothing


def test_crowdhuman_images_lie_where_they_are_said_to(odgt, tmp_path, photo):
    path = odgt(("a", [PERSON]), missing=("a",))
    error = refusal(path)
    assert "line 1 names the image a.jpg" in error.problem
    assert str(tmp_path / "Images") in error.problem
    assert "--images" in error.fix
    photo(tmp_path / "elsewhere" / "a.jpg")
    (sample,) = open_box_samples(path, BoxOptions(images=tmp_path / "elsewhere"))
    assert sample.image.parent.name == "elsewhere"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ID: b, gtboxes: []", "line 2 is no JSON: Expecting value"),
        ('{"ID": "b", "gtboxes": [', "line 2 is no JSON"),
        ('["b"]', "line 2 is no record"),
        ('{"ID": "a", "gtboxes": {"tag": "person"}}', "line 2: gtboxes holds"),
        (("a", [PERSON, PERSON | {"fbox": [1, 2, -3, 4]}]), "box 2 (fbox): the box '[1, 2, -3"),
        (("a", [PERSON | {"fbox": [1, 2, 3, 0]}]), "3 px wide and 0 px high"),
        (("a", [PERSON | {"fbox": [1, 2, float("nan"), 4]}]), "found '[1, 2, NaN, 4]'"),
        (("a", [PERSON | {"fbox": [1, 2, float("inf"), 4]}]), "found '[1, 2, Infinity, 4]'"),
        (("a", [PERSON | {"fbox": [1, 2, 10**400, 4]}]), "a box was expected"),
        (("a", [PERSON | {"fbox": ["1", 2, 3, 4]}]), "a box was expected"),
        (("a", [PERSON | {"fbox": [1, 2, 3]}]), "found '[1, 2, 3]'"),
        (("a", [{"tag": "person"}]), "found 'null'"),
        (("a", [{"tag": "mask", "fbox": [1, 2, -3, 4]}]), "-3 px wide"),
    ],
)  # fmt: skip
def test_a_line_of_crowdhuman_that_cannot_be_read(odgt, line, said):
    path = odgt(("a", [PERSON]), line)
    error = refusal(path)
    assert said in error.problem
    assert f"{path} line 2" in error.problem


def test_crowdhuman_has_no_other_boxes():
    with pytest.raises(DataError, match="'body'") as caught:
        BoxOptions(box="body")
    assert "full, visible, head" in caught.value.fix


def test_coco_reads_people_and_crowds(coco_file, tmp_path):
    def annotation(category, bbox, **fields):
        return {"id": 5, "image_id": 7, "category_id": category, "bbox": bbox, **fields}

    path = coco_file(
        annotation(1, [1.5, 2, 3, 4]),
        annotation(3, [0, 0, 9, 9]),
        annotation(1, [0, 0, 20, 20], iscrowd=1),
    )
    (sample,) = open_box_samples(path)
    assert sample.image == tmp_path / "val2017" / "a.jpg"
    np.testing.assert_array_equal(sample.boxes, [[1.5, 2, 4.5, 6], [0, 0, 20, 20]])
    assert sample.ignore.tolist() == [False, True]
    (cars,) = open_box_samples(path, BoxOptions(category="car"))
    np.testing.assert_array_equal(cars.boxes, [[0, 0, 9, 9]])


CATEGORIES = [
    {"id": 90, "name": "toothbrush"},
    {"id": 1, "name": "person"},
    {"id": 13, "name": "x"},
]


def test_coco_reads_all_categories_with_labels_in_the_order_of_their_numbers(coco_file):
    annotations = [
        {"id": k, "image_id": 7, "category_id": kind, "bbox": [k, 2, 3, 4]}
        for k, kind in enumerate([13, 1, 90, 1])
    ]
    path = coco_file(*annotations, categories=CATEGORIES)
    (everything,) = open_box_samples(path, BoxOptions(category=None))
    assert everything.labels.tolist() == [1, 0, 2, 0]
    np.testing.assert_array_equal(everything.boxes[:, 0], [0, 1, 2, 3])
    (brushes,) = open_box_samples(path, BoxOptions(category="toothbrush"))
    assert (brushes.labels.tolist(), brushes.boxes[0, 0]) == ([0], 2)


def test_a_box_of_coco_that_covers_nothing_is_left_out_with_a_word(coco_file, capsys):
    """As in annotation 918 of the published instances_train2017.json."""
    empty = {"id": 918, "image_id": 7, "category_id": 1, "bbox": [296.65, 388.33, 1.03, 0.0]}
    path = coco_file(empty, empty | {"bbox": [1, 2, 3, 4]}, empty | {"bbox": [1, 2, 0, 4]})
    (sample,) = open_box_samples(path)
    np.testing.assert_array_equal(sample.boxes, [[1, 2, 4, 6]])
    assert len(sample.labels) == len(sample.ignore) == 1
    assert "2 box(es) that cover nothing" in capsys.readouterr().err


@pytest.fixture
def published(tmp_path, photo):
    """CrowdHuman and COCO as they are unpacked, with every published field of an annotation."""
    crowd = tmp_path / "CrowdHuman"
    parts = {"train01": "273271,1a0d6000b9e1f5b7", "train03": "282555,5da2000fb96ff6a", "val": "b"}
    person = PERSON | {"head_attr": {"ignore": 0, "occ": 0, "unsure": 0}}
    for part, name in parts.items():
        photo(crowd / f"CrowdHuman_{part}" / "Images" / f"{name}.jpg")
        line = json.dumps({"ID": name, "gtboxes": [person]}) + "\n"
        with (crowd / f"annotation_{part.rstrip('0123456789')}.odgt").open("a") as file:
            file.write(line)
    coco = tmp_path / "COCO"
    image = {"id": 391895, "file_name": "000000391895.jpg", "height": 48, "width": 64, "license": 3}
    box = {"id": 1, "image_id": 391895, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    whole = box | {"segmentation": [[1, 2, 4, 2, 4, 6]], "area": 12.0}
    crowd = box | {"segmentation": {"counts": [9], "size": [48, 64]}, "area": 9, "iscrowd": 1}
    kinds = [{"supercategory": "person", "id": 1, "name": "person"}]
    for split in ("train2017", "val2017"):
        photo(coco / split / "000000391895.jpg")
        document = {"info": {}, "licenses": [], "images": [image], "categories": kinds}
        path = coco / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document | {"annotations": [whole, crowd]}))
    return tmp_path


def test_published_folders_are_read_as_they_are_unpacked(published):
    train = open_box_samples(published / "CrowdHuman" / "annotation_train.odgt")
    assert [sample.image.parents[1].name for sample in train] == [
        "CrowdHuman_train01", "CrowdHuman_train03",
    ]  # fmt: skip
    assert [sample.annotated for sample in train] == [1, 1]
    (val,) = open_box_samples(published / "CrowdHuman" / "annotation_val.odgt")
    assert val.image.parents[1].name == "CrowdHuman_val"
    for split in ("train2017", "val2017"):
        path = published / "COCO" / "annotations" / f"instances_{split}.json"
        (sample,) = open_box_samples(path)
        assert sample.image == published / "COCO" / split / "000000391895.jpg"
        assert (sample.annotated, sample.ignore.tolist()) == (1, [False, True])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bbox": [1, 2, -3, 4]}, "annotation 5: the box '[1, 2, -3, 4]' is -3 px wide"),
        ({"bbox": None}, "annotation 5: a box was expected"),
        ({"image_id": 8}, "annotation 5 is of image 8"),
        ({"image_id": [7]}, "annotation 5 is of image [7]"),
    ],
)
def test_an_annotation_of_coco_that_cannot_be_read(coco_file, fields, said):
    good = {"id": 5, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}
    assert said in refusal(coco_file(good | fields)).problem


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"categories": {}}, "categories is '{}'"),
        ({"annotations": [3]}, "annotations is '[3]'"),
        ({"categories": [{"id": [1], "name": "person"}]}, "a category's id is '[1]'"),
        ({"images": None}, "images is 'null'"),
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 7}]}, "an image needs id and file_name"),
        ({"images": [{"id": 7, "file_name": "b.jpg"}]}, "names the image b.jpg"),
    ],
)
def test_a_coco_file_that_cannot_be_read(coco_file, changes, said):
    assert said in refusal(coco_file(**changes)).problem


def test_a_category_that_does_not_exist(coco_file):
    error = refusal(coco_file(), BoxOptions(category="zebra"))
    assert "'zebra'" in error.problem
    assert "car, person" in error.fix


def test_mot_counts_from_one_and_leaves_out_what_is_ambiguous(sequence):
    folder = sequence(
        "1,1,11,21,30,40,1,1,0.9\n"
        "1,2,1,1,5,5,0,7,1\n"  # somebody who sits
        "1,3,1,1,5,5,0,3,1\n"  # a car
        "1,4,1,1,5,5,0,1,1\n"  # a pedestrian who does not count
        "10,1,-5,1,20,20,1,1,0.1\r\n\n"
    )
    first, second, last = open_box_samples(folder)
    assert [sample.image.name for sample in (first, second, last)] == [
        "000001.jpg", "000002.jpg", "000010.jpg",
    ]  # fmt: skip
    np.testing.assert_array_equal(first.boxes, [[10, 20, 40, 60], [0, 0, 5, 5], [0, 0, 5, 5]])
    assert first.ignore.tolist() == [False, True, True]
    assert (second.annotated, last.annotated) == (0, 1)
    assert open_box_samples(folder, BoxOptions(min_visibility=0.25))[2].annotated == 0


def test_a_sequence_without_published_boxes_is_not_annotated(sequence):
    assert [sample.annotated for sample in open_box_samples(sequence(None))] == [None] * 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,1,11,21,30,40,1,1", "line 2 has 8 columns, 9 were expected"),
        ("1,1,11,21,30,forty,1,1,1", "line 2: could not convert string to float: 'forty'"),
        ("one,1,11,21,30,40,1,1,1", "line 2: invalid literal"),
        ("1,1,nan,21,30,40,1,1,1", "line 2: a box was expected"),
        ("1,1,11,21,30,40,1,1,nan", "visibility are 1, 1, nan"),
        ("1,1,11,21,-30,40,1,1,1", "-30 px wide"),
        ("1,1,11,21,30,40,1,-1,-1", "visibility are 1, -1, -1"),  # MOT15's own columns
        ("3,1,11,21,30,40,1,1,1", "line 2 is of frame 3, which has no image"),
    ],
)
def test_a_row_of_mot_that_cannot_be_read(sequence, row, said):
    error = refusal(sequence(f"1,1,11,21,30,40,1,1,1\n{row}\n"))
    assert said in error.problem
    assert "gt.txt line 2" in error.problem


def test_a_sequence_that_cannot_be_read(sequence, photo):
    folder = sequence("", seqinfo="imDir=img1\n")
    assert "seqinfo.ini cannot be read" in refusal(folder).problem
    (folder / "seqinfo.ini").write_text("[Sequence]\nimDir=frames\n")
    assert "frames does not exist" in refusal(folder).problem
    photo(folder / "frames" / "left.jpg")
    assert "left.jpg is no frame" in refusal(folder).problem


def test_plain_images_are_not_annotated(tmp_path, photo):
    for name in ("b10.jpg", "b2.jpg"):
        photo(tmp_path / name)
    samples = open_box_samples(tmp_path)
    assert [(s.image.name, s.boxes, s.annotated) for s in samples] == [
        ("b2.jpg", None, None),
        ("b10.jpg", None, None),
    ]
    (one,) = open_box_samples(tmp_path / "b2.jpg")
    assert one.annotated is None


def test_the_layout_is_recognised_whatever_the_name(odgt, coco_file, tmp_path):
    path = odgt(("a", [PERSON]))
    renamed = path.rename(tmp_path / "val.txt")
    assert open_box_samples(renamed)[0].annotated == 1
    document = coco_file().rename(tmp_path / "people")
    found = open_box_samples(document, BoxOptions(images=tmp_path / "val2017"))
    assert found[0].annotated == 0


def test_several_annotations_are_not_guessed_at(odgt, sequence, tmp_path):
    odgt(("a", []))
    assert "annotation_val.odgt" in refusal(tmp_path).fix
    folder = sequence(None)
    assert str(folder) in refusal(tmp_path).fix


@pytest.mark.parametrize("name", ["missing", "missing.odgt"])
def test_what_is_missing(tmp_path, name):
    assert "does not exist" in refusal(tmp_path / name).problem


def test_binary_annotations(tmp_path):
    (tmp_path / "a.odgt").write_bytes(b"\xff\xfe\x00")
    assert "is no text: byte 0 is 0xff" in refusal(tmp_path / "a.odgt").problem
    (tmp_path / "b.odgt").write_bytes(b"\n\n")
    assert "holds no line" in refusal(tmp_path / "b.odgt").problem
    (tmp_path / "c.json").write_bytes(b"")
    assert "c.json is no JSON" in refusal(tmp_path / "c.json").problem


@pytest.mark.data
def test_mot17_as_published(data_root):
    folders = sorted((data_root / "MOT17-mini" / "train").iterdir())
    samples = [sample for folder in folders for sample in open_box_samples(folder)]
    assert len(samples) == 39
    assert sum(sample.annotated for sample in samples) == 814
    seen = [
        sample.annotated
        for folder in folders
        for sample in open_box_samples(folder, BoxOptions(min_visibility=0.5))
    ]
    assert sum(seen) == 814 - 280
    assert sum(int(sample.ignore.sum()) for sample in samples) == 136
