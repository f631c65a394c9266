from mosa_deploy.utils.markdown import table


def test_a_table_has_a_head_a_rule_and_one_line_per_row() -> None:
    assert table(("file", "MB"), [("a.onnx", 1.5), ("b.onnx", None)]).splitlines() == [
        "| file | MB |",
        "| --- | --- |",
        "| a.onnx | 1.5 |",
        "| b.onnx | None |",
    ]


def test_columns_are_aligned_as_their_letters_say() -> None:
    assert table(("a", "b", "c"), [], align="lrr") == "| a | b | c |\n| --- | ---: | ---: |"


def test_a_bar_or_a_line_break_in_a_cell_does_not_break_the_table() -> None:
    assert table(("a|b",), [("c\nd",)]) == "| a\\|b |\n| --- |\n| c d |"
