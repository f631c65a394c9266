"""Tables of labels as people have them: from spreadsheets, competitions and hubs.

The images are `0.jpg` to `9.jpg`; the even ones are oaks.
"""

import json
from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError
from tests.support.images import numbered, write_images
from tests.support.splits import ROWS, labels, listed, refusal, sizes, write_table
from training.tasks.folder import Folder

PARTS = ["train", "train", "train", "train", "train", "train", "val", "val", "test", "test"]
"""The sets of the images."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", *numbered("{}.jpg", 10))


@pytest.mark.parametrize(
    "header",
    [
        *("file,label", "filename,class", "path,category", "image,target", "File Name,Class Name", "IMAGE_ID,dx"),
        *("img_path,y", "id,breed", "id_code,diagnosis", "file_name,label", "filepaths,labels", "Image Path,Species"),
    ],
)
def test_columns_by_the_names_that_people_give_them(images: Path, tmp_path: Path, header: str) -> None:
    found = listed(images, write_table(tmp_path / "labels.csv", header, ROWS))
    assert labels(found) == dict(ROWS)
    assert sizes(found) == [6, 2, 2]
    file, label = header.split(",")
    assert found.remarks == (f"{tmp_path / 'labels.csv'}: file from {file!r}, label from {label!r}",)


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends_of_every_system(images: Path, tmp_path: Path, delimiter: str, end: str) -> None:
    assert labels(listed(images, write_table(tmp_path / "labels.txt", "file,label", ROWS, delimiter, end))) == dict(
        ROWS
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(images: Path, tmp_path: Path, encoding: str) -> None:
    path = write_table(tmp_path / "labels.csv", "file,label", ROWS)
    path.write_bytes(path.read_text().replace("oak", "chêne").encode(encoding))
    found = listed(images, path)
    assert labels(found)["0.jpg"] == "chêne"
    assert found.remarks == (f"{path}: file from 'file', label from 'label'",)


def test_excels_line_that_names_the_delimiter(images: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "labels.csv", "file,label", ROWS, ";")
    path.write_text("sep=;\n" + path.read_text())
    assert labels(listed(images, path)) == dict(ROWS)


def test_quotes_blank_lines_and_blanks_around_values(images: Path, tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "labels.csv", '"file", "label"', [(f'"{file}"', f' "{label}"') for file, label in ROWS]
    )
    path.write_text(path.read_text().replace("\n", "\n\n"))
    assert labels(listed(images, path)) == dict(ROWS)


def test_a_table_without_a_header(images: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "labels.csv", ",".join(ROWS[0]), ROWS[1:])
    assert labels(listed(images, path)) == dict(ROWS)


def test_a_list_with_blanks_as_in_imagenet(images: Path, tmp_path: Path) -> None:
    rows = [(file, "1" if label == "oak" else "0") for file, label in ROWS]
    assert labels(listed(images, write_table(tmp_path / "train.txt", " ".join(rows[0]), rows[1:], " "))) == dict(rows)


def test_a_column_of_row_numbers_as_pandas_writes_it(images: Path, tmp_path: Path) -> None:
    rows = [(str(i), *row) for i, row in enumerate(ROWS)]
    assert labels(listed(images, write_table(tmp_path / "labels.csv", ",file,label", rows))) == dict(ROWS)


def test_numbers_that_pandas_saved_as_floats(images: Path, tmp_path: Path) -> None:
    rows = [(file, "1.0" if label == "oak" else "10.0") for file, label in ROWS]
    assert listed(images, write_table(tmp_path / "labels.csv", "file,label", rows)).classes == ("1", "10")


def test_a_number_and_its_name_in_two_columns(images: Path, tmp_path: Path) -> None:
    rows = [(file, str(len(label) + int(label == "oak")), label) for file, label in ROWS]
    assert listed(images, write_table(tmp_path / "labels.csv", "file,label,class_name", rows)).classes == ("ash", "oak")


@pytest.mark.parametrize("name", ["metadata.jsonl", "labels.json"])
def test_hugging_faces_metadata(tmp_path: Path, name: str) -> None:
    entries = [{"file_name": file, "label": label, "width": 8} for file, label in ROWS]
    write_images(tmp_path, *numbered("{}.jpg", 10))
    lines = json.dumps(entries) if name.endswith("json") else "\n".join(map(json.dumps, entries))
    (tmp_path / name).write_text(lines)
    assert labels(Folder(labels=(tmp_path / name,)).splits(None, None)) == dict(ROWS)


def test_one_json_object_of_files_and_labels(images: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(dict(ROWS), indent=1))
    assert labels(listed(images, tmp_path / "labels.json")) == dict(ROWS)


def test_a_broken_line_of_json_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text('{"file": "0.jpg", "label": "oak"}\n{"file": "1.jpg", "lab')
    assert refusal(images, tmp_path / "labels.jsonl").startswith(
        f"--labels {tmp_path}/labels.jsonl:2 is not JSON: give"
    )


def test_columns_that_are_not_used_are_named(images: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "labels.csv", "name,label,camera", [(*row, "nikon") for row in ROWS])
    assert listed(images, path).remarks == (f"{path}: file from 'name', label from 'label'; not used: 'camera'",)


@pytest.mark.parametrize("column", ["is_valid", "is_training_image", "fold"])
def test_a_column_that_may_say_the_set_is_not_passed_over(images: Path, tmp_path: Path, column: str) -> None:
    table = write_table(tmp_path / "labels.csv", f"file,label,{column}", [(*row, "1") for row in ROWS])
    hint = f"; if {column!r} says the set, write train, validation and test into a column `split`"
    assert listed(images, table).remarks[0].endswith(f"not used: {column!r}{hint}")


def test_hugging_faces_metadata_in_each_set(tmp_path: Path) -> None:
    tables = []
    for part in ("train", "validation", "test"):
        write_images(tmp_path / part, *numbered("{}.jpg", 10))
        tables.append(write_table(tmp_path / part / "metadata.csv", "file_name,label", ROWS))
    found = listed(tmp_path, *tables)
    assert sizes(found) == [10, 10, 10]
    assert {example.name.split("/")[0] for example in found.test} == {"test"}


def test_one_table_for_each_set(images: Path, tmp_path: Path) -> None:
    parts = {"train.csv": ROWS[:6], "Valid.csv": ROWS[6:8], "test_labels.csv": ROWS[8:]}
    found = listed(images, *(write_table(tmp_path / name, "file,label", rows) for name, rows in parts.items()))
    assert sizes(found) == [6, 2, 2]


# Files


def test_paths_of_windows(tmp_path: Path) -> None:
    write_images(tmp_path / "images", *numbered("a/{}.jpg", 10))
    rows = [(f".\\a\\{file}", label) for file, label in ROWS]
    found = listed(tmp_path / "images", write_table(tmp_path / "labels.csv", "file,label", rows))
    assert labels(found) == {f"a/{file}": label for file, label in ROWS}


@pytest.mark.parametrize("prefix", ["/kaggle/input/trees/images/", "C:\\data\\images\\", "images/", "./", "../images/"])
def test_paths_of_another_machine_or_folder(images: Path, tmp_path: Path, prefix: str) -> None:
    rows = [(prefix + file, label) for file, label in ROWS]
    assert labels(listed(images, write_table(tmp_path / "labels.csv", "file,label", rows))) == dict(ROWS)


def test_names_without_folder_and_suffix_as_in_competitions(tmp_path: Path) -> None:
    write_images(tmp_path / "part_1", *numbered("{}.jpg", 5))
    write_images(tmp_path / "part_2", *(f"{i}.jpg" for i in range(5, 10)))
    rows = [(file.removesuffix(".jpg"), label) for file, label in ROWS]
    found = listed(tmp_path, write_table(tmp_path / "train.csv", "image_id,dx", rows))
    assert {Path(name).name: label for name, label in labels(found).items()} == dict(ROWS)


def test_a_name_that_fits_two_images_is_refused_with_both(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered("a/{}.jpg", 10), "b/3.jpg")
    path = write_table(tmp_path / "labels.csv", "file,label", ROWS)
    assert refusal(tmp_path, path) == f"--labels {path}:5: '3.jpg' may be 'a/3.jpg' and 'b/3.jpg': write the path"


def test_other_case_than_on_disk(images: Path, tmp_path: Path) -> None:
    rows = [(file.upper(), label) for file, label in ROWS]
    assert labels(listed(images, write_table(tmp_path / "labels.csv", "file,label", rows))) == dict(ROWS)


def test_images_that_are_not_listed_are_counted(images: Path, tmp_path: Path) -> None:
    write_images(images, "10.jpg", "11.jpg")
    found = listed(images, write_table(tmp_path / "labels.csv", "file,label", ROWS))
    assert found.remarks[1] == f"left out: 2 image(s) of {images} that labels.csv does not list, such as '10.jpg'"


def test_missing_files_are_counted_and_the_first_is_named(images: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "labels.csv", "file,label", [*ROWS, ("x.jpg", "oak"), ("y.jpg", "ash")])
    assert refusal(images, path) == (
        f"--labels {path} names 2 of 12 files that are not in {images}, first 'x.jpg' in line 12: add them, or remove"
        " the rows"
    )


def test_a_listed_file_that_cannot_be_read_says_why(images: Path, tmp_path: Path) -> None:
    write_images(images, "clip.mov")
    path = write_table(tmp_path / "labels.csv", "file,label", [*ROWS, ("clip.mov", "oak")])
    assert "'clip.mov' in line 12 (a file that is not read: left out as no images: 1 .mov): " in refusal(images, path)


def test_doubled_rows_are_used_once_and_counted(images: Path, tmp_path: Path) -> None:
    found = listed(images, write_table(tmp_path / "labels.csv", "file,label", [*ROWS, ROWS[0], ROWS[0], ROWS[3]]))
    assert sum(sizes(found)) == 10
    assert "3 rows name an image that an earlier row names alike: each image is used once" in found.remarks


def test_one_image_with_two_classes(images: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "labels.csv", "file,label", [*ROWS, ("./0.jpg", "ash")])
    assert refusal(images, path) == (
        f"--labels {path}:12: './0.jpg' has label 'ash', and 'oak' in {path}:2: keep one, or add --multi-label if an"
        " image may have several labels"
    )


def test_one_image_in_two_sets(images: Path, tmp_path: Path) -> None:
    rows = [(*row, part) for row, part in zip(ROWS, PARTS, strict=True)]
    path = write_table(tmp_path / "labels.csv", "file,label,split", [*rows, ("0.jpg", "oak", "test")])
    assert refusal(images, path) == (f"--labels {path}:12: '0.jpg' has split 'test', and 'train' in {path}:2: keep one")


# Sets and groups


@pytest.mark.parametrize("column", ["split", "set", "Subset", "data set", "Usage"])
@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "Validation", "PublicTest")])
def test_a_column_of_sets(images: Path, tmp_path: Path, column: str, names: tuple[str, str, str]) -> None:
    written = dict(zip(("train", "val", "test"), names, strict=True))
    rows = [(*row, written[part]) for row, part in zip(ROWS, PARTS, strict=True)]
    found = listed(images, write_table(tmp_path / "labels.csv", f"file,label,{column}", rows))
    assert (sizes(found), found.note) == ([6, 2, 2], "as labels.csv says")


def test_a_set_that_is_none_is_named_with_its_line(images: Path, tmp_path: Path) -> None:
    rows = [(*row, "train" if i else "fold-1") for i, row in enumerate(ROWS)]
    path = write_table(tmp_path / "labels.csv", "file,label,split", rows)
    assert refusal(images, path) == (f"--labels {path}:2: split 'fold-1' is no set: write train, validation or test")


def test_a_table_of_test_images_alone(images: Path, tmp_path: Path) -> None:
    rows = [(*row, "test") for row in ROWS]
    found = listed(images, write_table(tmp_path / "labels.csv", "file,label,split", rows))
    assert (sizes(found), found.note) == ([0, 0, 10], "as labels.csv says: a test set alone")


def test_a_class_in_one_set_alone_is_named(images: Path, tmp_path: Path) -> None:
    rows = [(*row, part) for row, part in zip(ROWS, PARTS, strict=True)]
    rows[0] = ("0.jpg", "elm", "train")
    said = "validation of labels.csv has other classes than train of labels.csv ('elm' is in one of them alone)"
    assert (
        refusal(images, write_table(tmp_path / "labels.csv", "file,label,split", rows)) == f"{said}: make them the same"
    )


@pytest.mark.parametrize(("header", "group"), [("file,label,group", None), ("file,label,Garden No", "garden_no")])
def test_a_column_of_groups(images: Path, tmp_path: Path, header: str, group: str | None) -> None:
    rows = [(*row, f"g{i // 2}") for i, row in enumerate(ROWS)]
    found = listed(images, write_table(tmp_path / "labels.csv", header, rows), group=group)
    sets = [{example.group for example in part} for part in (found.train, found.validation, found.test)]
    assert [len(part) for part in sets] == [3, 1, 1]
    assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]


def test_a_column_of_groups_that_is_not_there(images: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "labels.csv", "file,label", ROWS)
    with pytest.raises(ConfigError) as caught:
        listed(images, path, group="patient")
    assert str(caught.value) == f"--group patient: {path} has no such column; its columns are 'file', 'label'"


def test_a_table_that_contradicts_the_folders_is_taken_and_told(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", *numbered("oak/{}.jpg", 10), *numbered("ASH/{}.jpg", 10))
    rows = [(f"{folder}/{i}.jpg", "oak" if i < 8 else "ash") for folder in ("oak", "ASH") for i in range(10)]
    found = listed(images, write_table(tmp_path / "labels.csv", "file,label", rows))
    assert labels(found) == dict(rows)
    (line,) = (line for line in found.remarks if "folder" in line)
    assert line == (
        "warning: 10 image(s) lie in the folder of another class than the table says, which is taken: 'ASH/0.jpg' is"
        f" 'oak' in {tmp_path / 'labels.csv'}:12"
    )


def test_a_column_of_patients_is_offered_as_groups(images: Path, tmp_path: Path) -> None:
    rows = [(*row, f"p{i // 2}") for i, row in enumerate(ROWS)]
    table = write_table(tmp_path / "labels.csv", "file,label,Patient_ID", rows)
    hint = "; --group Patient_ID would keep the images of one Patient_ID in one set"
    assert listed(images, table).remarks[0].endswith(f"not used: 'Patient_ID'{hint}")


def test_images_without_a_group_are_no_group(images: Path, tmp_path: Path) -> None:
    rows = [(*row, "p1" if i < 4 else ("", "nan", "N/A")[i % 3]) for i, row in enumerate(ROWS)]
    found = listed(images, write_table(tmp_path / "labels.csv", "file,label,patient", rows), group="patient")
    assert "7 groups kept whole (the largest, 'p1', has 4 images)" in found.note
