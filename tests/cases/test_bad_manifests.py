"""Tables of labels that cannot be used: no classes in them, several per image, or no table at all.

The images are `0.jpg` to `9.jpg`; the even ones are oaks.
"""

import json
from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError
from tests.support.images import numbered, write_images
from tests.support.splits import ROWS, listed, refusal, write_table
from training.arguments import tune_config
from training.tasks import find
from training.tasks.folder import Folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", *numbered("{}.jpg", 10))


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (["cat|dog", "cat"], "cat|dog"),
        (["cat;dog", "cat", "dog"], "cat;dog"),
        (["cat dog", "cat", "dog"], "cat dog"),
        (["[1, 0, 1]", "[0, 1, 1]"], "[0, 1, 1]"),
        (["a;b", "b;c", "c;a"], "a;b"),
        (["cat", "cat; dog"], "cat; dog"),
        (['{"name": "cat"}', '{"name": "dog"}'], '{"name": "cat"}'),
    ],
)
def test_several_labels_per_image_are_refused_by_name(
    images: Path, tmp_path: Path, values: list[str], shown: str
) -> None:
    rows = [(file, values[i % len(values)]) for i, (file, _) in enumerate(ROWS)]
    path = write_table(tmp_path / "labels.csv", "file,tags", rows, "\t")
    assert refusal(images, path) == (
        f"--labels {path}: column 'tags' names several classes per image, such as {shown!r}: add --multi-label if"
        " an image may have several labels, or give a column with one class per image"
    )


def test_a_list_in_json_is_several_labels(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n".join(json.dumps({"file_name": file, "label": [label]}) for file, label in ROWS))
    assert "column 'label' names several classes per image" in refusal(images, path)


def test_one_column_per_class_is_refused_by_name(images: Path, tmp_path: Path) -> None:
    rows = [(file, str(int(label == "oak")), str(int(label != "oak"))) for file, label in ROWS]
    path = write_table(tmp_path / "labels.csv", "file,oak,ash", rows)
    assert refusal(images, path).startswith(f"--labels {path}: columns 'oak', 'ash' hold 0 and 1, one for each class: ")


@pytest.mark.parametrize("column", ["label", "price"])
def test_quantities_are_refused_by_name(images: Path, tmp_path: Path, column: str) -> None:
    path = write_table(
        tmp_path / "labels.csv", f"file,{column}", [(file, f"{i / 4}") for i, (file, _) in enumerate(ROWS)]
    )
    assert refusal(images, path).startswith(
        f"--labels {path}: column {column!r} holds quantities, such as 0.25: regression cannot be tuned: "
    )


def test_many_ages_are_no_classes(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered("{}.jpg", 30))
    path = write_table(tmp_path / "labels.csv", "file,age", [(f"{i}.jpg", str(20 + i % 12)) for i in range(30)])
    assert refusal(tmp_path, path).startswith(f"--labels {path}: column 'age' holds quantities, such as 20: regression")


def test_captions_are_no_classes(images: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "metadata.csv", "file_name,text", [(file, f"a tree in {file}") for file, _ in ROWS])
    assert refusal(images, path) == (
        f"--labels {path} has no column of labels: its columns are 'file_name', 'text': name one `label`"
    )


def test_two_columns_that_could_be_the_label(images: Path, tmp_path: Path) -> None:
    rows = [(*row, "big" if i < 5 else "small") for i, row in enumerate(ROWS)]
    path = write_table(tmp_path / "labels.csv", "file,label,category", rows)
    assert refusal(images, path) == f"--labels {path}: 'label' and 'category' both could be the label: rename one"


def test_names_with_blanks_and_commas_are_classes(images: Path, tmp_path: Path) -> None:
    names = {"oak": "New York, NY", "ash": "New Jersey, NJ"}
    path = tmp_path / "labels.csv"
    path.write_text("file,label\n" + "".join(f'{file},"{names[label]}"\n' for file, label in ROWS))
    assert listed(images, path).classes == ("New Jersey, NJ", "New York, NY")


def test_rows_without_a_label(images: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "labels.csv", "file,label", [*ROWS[:8], ("8.jpg", ""), ("9.jpg", "NaN")])
    said = "2 rows have no 'label', the first in line 10: fill them in, or remove them"
    assert refusal(images, path) == f"--labels {path}: {said}"


def test_names_that_differ_by_case_alone(images: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "labels.csv", "file,label", [*ROWS[:9], ("9.jpg", "Ash")])
    assert refusal(images, path).startswith(
        "classes 'Ash' and 'ash' in labels.csv differ by case, spaces, leading zeros or Unicode form alone"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: give a CSV file with columns file and label, or a JSONL file with these fields"),
        (b"PK\x03\x04 xl/workbook.xml", "is a spreadsheet or an archive: save it as CSV"),
        (b"PAR1", "is a Parquet file: save it as CSV"),
        (b'{"images": ["0.jpg"], "labels": [0]}', "is one JSON object, not one for each image: give a CSV file with"),
        (b"x,y\n1,2\n", "has no column of files: its columns are 'x', 'y': name one `file`"),
        (b"file,file\n1,2\n", "has two columns 'file': rename one"),
    ],
)
def test_files_that_are_no_tables(images: Path, tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    assert refusal(images, path).startswith(f"--labels {path} {said}")


def test_a_table_in_a_windows_code_page_is_named_with_its_line(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("file,label\n0.jpg,chêne\n".encode("cp1252"))
    assert refusal(images, path) == f'--labels {path}:2 is not UTF-8: save it as "CSV UTF-8"'


def test_a_row_of_too_few_columns_is_named(images: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "labels.csv", "file,label", [*ROWS, ("x.jpg",)])
    assert refusal(images, path) == f"--labels {path}:12 has 1 columns, the header has 2: mend it"


def test_a_table_that_is_not_there(images: Path, tmp_path: Path) -> None:
    said = "No such file or directory; give a CSV file with columns file and label"
    assert refusal(images, tmp_path / "labels.csv").startswith(f"--labels {tmp_path / 'labels.csv'}: {said}")


def test_other_tasks_take_no_tables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--labels goes with --task folder: leave it out$"):
        tune_config(["--task", "digits", "--labels", str(tmp_path / "labels.csv")])


def test_several_tables_reach_the_task() -> None:
    config = tune_config(["--task", "folder", "--labels", "train.csv", "test.csv"])
    assert find(config.task, config.labels, config.group) == Folder((Path("train.csv"), Path("test.csv")))


def test_a_header_without_rows(images: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "labels.csv", "file,label", [])
    assert refusal(images, table).startswith(f"--labels {table} has a header and no rows: give a CSV file")
