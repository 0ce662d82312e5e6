"""Each grader on right, wrong and malformed answers."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_prune.sweep.graders import Expectation, check, grade, names, register


def right(grader: str, answer: str, expected: Any = "", box: Any = None, **options: Any) -> bool:
    expectation = Expectation(expected, grader, box, options)
    check(expectation)
    return grade(answer, expectation)


def test_exact_is_the_text_itself() -> None:
    assert right("exact", " red\n", "red")
    assert right("exact", "b", ["a", "b"])
    assert not right("exact", "Red", "red")
    assert not right("exact", "red.", "red")


def test_contains_looks_inside() -> None:
    assert right("contains", "It is a RED star.", "red")
    assert right("contains", "one", ["two", "one"])
    assert not right("contains", "It is blue.", "red")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("(C) because it moves", "C"), ("D. The dog", "D"), ("The answer is B.", "B"),
        ("Answer: C", "C"), ("option D", "D"), ("b", "B"), ("A cat is shown; the answer is C", "C"),
        ("I don't know", ""), ("A dog", ""), ("C is right", "C"), ("because", ""), ("", ""),
    ],
)  # fmt: skip
def test_choice_reads_the_letter(answer: str, letter: str) -> None:
    assert [one for one in "ABCDI" if right("choice", answer, one)] == list(letter)


def test_number_takes_the_last_one() -> None:
    assert right("number", "From 3 to 1,234.5", 1234.5)
    assert right("number", "between 1,2 and 3,14", 14)
    assert right("number", "it costs -2e3", "-2000")
    assert right("number", "about 102", 100, tolerance=0.02)
    assert not right("number", "about 103", 100, tolerance=0.02)
    assert not right("number", "none", 0)
    assert not right("number", "5 of 7", 5)


def test_point_lies_in_the_box() -> None:
    box = (100.0, 50.0, 200.0, 90.0)
    assert right("point", "(150, 70)", box=box)
    assert right("point", "<point>100 90</point>", box=box)
    assert right("point", "120,340 60", box=(100, 300, 200, 400))
    assert not right("point", "(99.9, 70)", box=box)
    assert not right("point", "(70, 150)", box=box)
    assert not right("point", "150", box=box)
    assert not right("point", "left of the button", box=box)
    # A box of four numbers stands for its middle.
    assert right("point", "[[140, 60, 180, 80]]", box=box)
    assert not right("point", "[100, 50, 400, 90]", box=box)


def test_point_in_other_coordinates() -> None:
    box, size = (100.0, 50.0, 200.0, 90.0), [1000, 500]
    assert right("point", "(0.15, 0.14)", box=box, coordinates="unit", size=size)
    assert right("point", "(150, 140)", box=box, coordinates="thousand", size=size)
    assert not right("point", "(150, 70)", box=box, coordinates="thousand", size=size)


def test_an_android_action_needs_type_and_place() -> None:
    click = {"action_type": "click", "x": 500, "y": 1000}
    options = {"coordinates": "pixels", "size": [1000, 2000]}

    def same(answer: str, wanted: Any = click, **changed: Any) -> bool:
        return right("android_action", answer, wanted, **{**options, **changed})

    import vllm_prune.sweep.loaders  # noqa: F401  registers the grader

    assert same('{"action_type": "click", "x": 600, "y": 1100}')
    assert not same('{"action_type": "click", "x": 660, "y": 1000}')
    assert not same('{"action_type": "long_press", "x": 500, "y": 1000}')
    assert not same('{"action_type": "click"}')
    assert not same("click the button")
    assert not same("{broken}")
    assert same('```json\n{"action_type": "click", "x": 500, "y": 500}\n```', coordinates="thousand")
    scroll = {"action_type": "scroll", "direction": "down"}
    assert same('{"action_type": "scroll", "direction": "Down"}', scroll)
    assert not same('{"action_type": "scroll", "direction": "up"}', scroll)
    assert same('{"action_type": "navigate_back"}', {"action_type": "navigate_back"})


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        (Expectation("a", "exactly"), "unknown grader 'exactly'; known: .*exact"),
        (Expectation("a", "exact", None, {"tolerance": 1}), r"no option \['tolerance'\]; it takes: none"),
        (Expectation("", "point"), "needs a box"),
        (Expectation("x", "number"), "needs a number, not 'x'"),
        (Expectation("", "point", (0, 0, 1, 1), {"coordinates": "metres"}), "pixels, unit, thousand"),
        (Expectation("", "point", (0, 0, 1, 1), {"coordinates": "unit"}), "need size"),
    ],
)
def test_what_cannot_be_graded_is_said_before(expectation: Expectation, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(expectation)


def test_a_grader_of_ones_own() -> None:
    @register("test_longer")
    def longer(answer: str, expectation: Expectation) -> bool:
        return len(answer) > int(expectation.expected)

    assert "test_longer" in names()
    assert right("test_longer", "four", 3)
    assert not right("test_longer", "four", 4)
    with pytest.raises(ValueError, match="taken"):
        register("exact")(longer)
