"""The order of execution, read as a table."""

from __future__ import annotations

import doctest

import pytest
from metaweight.engines import Action, Instruction, Rhythm, Schedule
from metaweight.engines.program import schedule


def table(schedule: Schedule, leaves: list[str], steps: int) -> list[str]:
    """One line per step of all leaves: every action, a count at steps, and its flags.

    ``*``: recorded, ``?``: will be taken back, ``-``: parameters do not change yet.
    """
    return [
        " ".join(word(i) for leaf in leaves for i in schedule.advance(leaf)) for _ in range(steps)
    ]


def word(i: Instruction) -> str:
    if i.action is not Action.STEP:
        return f"{i.problem}:{i.action.name}"
    flags = ("*" if i.record else "") + ("" if i.settled else "?") + ("" if i.last else "-")
    return f"{i.problem}{i.count}{flags}"


def test_the_upper_problem_follows_every_step() -> None:
    schedule = Schedule({}, {"w": ["v"]})
    assert table(schedule, ["w"], 2) == [
        "w:LOOP_START w1* v:LOOP_START v1",
        "w:LOOP_START w2* v:LOOP_START v2",
    ]


def test_unrolling_hands_over_every_so_many_steps() -> None:
    schedule = Schedule({"w": Rhythm(unroll_steps=3)}, {"w": ["v"]})
    assert table(schedule, ["w"], 6) == [
        "w:LOOP_START w1",
        "w2",
        "w3* v:LOOP_START v1",
        "w:LOOP_START w4",
        "w5",
        "w6* v:LOOP_START v2",
    ]


def test_warm_up_steps_hand_over_nothing() -> None:
    schedule = Schedule({"w": Rhythm(unroll_steps=2, warmup=3)}, {"w": ["v"]})
    # 2 would be an upper update, but lies in the warm-up; 4 is the first even number above 3.
    assert table(schedule, ["w"], 5) == [
        "w:LOOP_START w1",
        "w2",
        "w3",
        "w4* v:LOOP_START v1",
        "w:LOOP_START w5",
    ]


def test_warm_up_ends_after_as_many_steps_as_it_says() -> None:
    assert [n for n in range(1, 9) if Rhythm(unroll_steps=2, warmup=4).is_upper_update(n)] == [6, 8]


def test_accumulation_counts_micro_batches_and_records_the_whole_last_window() -> None:
    schedule = Schedule({"w": Rhythm(unroll_steps=2, accumulation=2)}, {"w": ["v"]})
    assert table(schedule, ["w"], 5) == [
        "w:LOOP_START w1-",
        "w2",
        "w3*-",
        "w4* v:LOOP_START v1",
        "w:LOOP_START w5-",
    ]


def test_accumulation_marks_where_a_window_opens() -> None:
    schedule = Schedule({"w": Rhythm(accumulation=3)}, {})
    steps = [i for _ in range(6) for i in schedule.advance("w") if i.action is Action.STEP]
    assert [i.first for i in steps] == [True, False, False, True, False, False]
    assert [i.last for i in steps] == [False, False, True, False, False, True]


def test_an_accumulating_upper_problem_still_steps_each_time() -> None:
    schedule = Schedule({"v": Rhythm(accumulation=2)}, {"w": ["v"]})
    assert table(schedule, ["w"], 2) == [
        "w:LOOP_START w1* v:LOOP_START v1-",
        "w:LOOP_START w2* v2",
    ]


def test_a_problem_without_upper_problems_starts_a_loop_where_it_would_upper_update() -> None:
    schedule = Schedule({"w": Rhythm(unroll_steps=2)}, {})
    assert table(schedule, ["w"], 3) == ["w:LOOP_START w1", "w2", "w:LOOP_START w3"]


def test_a_problem_without_upper_problems_is_never_recorded() -> None:
    schedule = Schedule({"w": Rhythm(roll_back=True)}, {})
    assert table(schedule, ["w"], 2) == ["w:LOOP_START w1", "w:LOOP_START w2"]


def test_roll_back_takes_the_loop_back_once_the_upper_problem_has_stepped() -> None:
    schedule = Schedule({"w": Rhythm(unroll_steps=2, roll_back=True)}, {"w": ["v"]})
    assert table(schedule, ["w"], 4) == [
        "w:LOOP_START w:SNAPSHOT w1?",
        "w2*? v:LOOP_START v1 w:REDO",
        "w:LOOP_START w:SNAPSHOT w3?",
        "w4*? v:LOOP_START v2 w:REDO",
    ]


def test_roll_back_never_undoes_warm_up() -> None:
    schedule = Schedule({"w": Rhythm(unroll_steps=2, warmup=2, roll_back=True)}, {"w": ["v"]})
    assert table(schedule, ["w"], 4) == [
        "w:LOOP_START w:SNAPSHOT w1",
        "w2",
        "w:SNAPSHOT w3?",
        "w4*? v:LOOP_START v1 w:REDO",
    ]


def test_a_loop_nobody_answered_is_kept() -> None:
    schedule = Schedule(
        {"w": Rhythm(roll_back=True), "u": Rhythm(unroll_steps=2)}, {"w": ["v"], "u": ["v"]}
    )
    assert table(schedule, ["w", "u"], 3) == [
        "w:LOOP_START w:SNAPSHOT w1*? u:LOOP_START u1*",
        "w:KEEP w:LOOP_START w:SNAPSHOT w2*? u2* v:LOOP_START v1 w:REDO",
        "w:LOOP_START w:SNAPSHOT w3*? u:LOOP_START u3*",
    ]


def test_roll_back_of_three_levels_goes_from_bottom_to_top() -> None:
    rhythm = Rhythm(roll_back=True)
    schedule = Schedule({"a": rhythm, "b": rhythm, "c": rhythm}, {"a": ["b"], "b": ["c"]})
    assert table(schedule, ["a"], 1) == [
        "a:LOOP_START a:SNAPSHOT a1*? b:LOOP_START b:SNAPSHOT b1*? c:LOOP_START c1 a:REDO b:REDO"
    ]


def test_three_levels_at_three_paces() -> None:
    schedule = Schedule(
        {"a": Rhythm(unroll_steps=2), "b": Rhythm(unroll_steps=2)}, {"a": ["b"], "b": ["c"]}
    )
    lines = table(schedule, ["a"], 8)
    assert [line.split()[-1] for line in lines] == ["a1", "b1", "a3", "c1", "a5", "b3", "a7", "c2"]


def test_two_leaves_at_different_paces_wait_for_each_other() -> None:
    schedule = Schedule({"x": Rhythm(unroll_steps=3)}, {"w": ["v"], "x": ["v"]})
    assert table(schedule, ["w", "x"], 6) == [
        "w:LOOP_START w1* x:LOOP_START x1*",
        "w:LOOP_START w2* x2*",
        "w:LOOP_START w3* x3* v:LOOP_START v1",
        "w:LOOP_START w4* x:LOOP_START x4*",
        "w:LOOP_START w5* x5*",
        "w:LOOP_START w6* x6* v:LOOP_START v2",
    ]


def test_a_diamond_steps_its_top_once() -> None:
    schedule = Schedule({}, {"w": ["l", "r"], "l": ["t"], "r": ["t"]})
    lines = table(schedule, ["w"], 2)
    assert lines[1] == "w:LOOP_START w2* l:LOOP_START l2* r:LOOP_START r2* t:LOOP_START t2"


def test_rewiring_keeps_counts_and_asks_for_readiness_anew() -> None:
    earlier = Schedule({"x": Rhythm(unroll_steps=2)}, {"w": ["v"], "x": ["v"]})
    table(earlier, ["w", "x"], 3)  # w stands ready for v; x is in the middle of its loop
    later = Schedule({"x": Rhythm(unroll_steps=2)}, {"w": ["v"], "x": ["v"]})
    later.carry_over(earlier)
    assert [later.progress(name).count for name in "wxv"] == [3, 3, 1]
    assert table(later, ["x", "w"], 1) == ["x4* w:LOOP_START w4* v:LOOP_START v2"]


def test_readiness_before_rewiring_counts_for_nothing() -> None:
    earlier = Schedule({}, {"w": ["v"], "x": ["v"]})
    earlier.advance("w")
    later = Schedule({}, {"w": ["v"], "x": ["v"]})
    later.carry_over(earlier)
    assert [i.problem for i in later.advance("x") if i.action is Action.STEP] == ["x"]


def test_preview_leaves_the_schedule_where_it_is() -> None:
    schedule = Schedule({}, {"w": ["v"]})
    schedule.advance("w")
    text = schedule.preview(["w"], 1)
    assert text == "1 w: loop start, step 1 (recorded)\n  v: loop start, step 1"
    assert schedule.progress("w").count == 1


def test_preview_indents_by_the_width_of_the_number() -> None:
    assert Schedule({}, {"w": ["v"]}).preview(["w"], 10).splitlines()[-2:] == [
        "10 w: loop start, step 10 (recorded)",
        "   v: loop start, step 10",
    ]


def test_the_example_in_the_module_is_true() -> None:
    result = doctest.testmod(schedule)
    assert result.attempted == 2
    assert result.failed == 0


@pytest.mark.parametrize("roll_back", [False, True])
def test_preview_names_every_action(roll_back: bool) -> None:
    rhythms = {"w": Rhythm(roll_back=roll_back), "x": Rhythm(unroll_steps=2)}
    text = Schedule(rhythms, {"w": ["v"], "x": ["v"]}).preview(["w", "x"], 2)
    for action in ("snapshot", "redo", "keep"):
        assert (action in text) is roll_back


def test_hand_overs_come_every_so_many_loops_from_the_present_one_on() -> None:
    schedule = Schedule({"w": Rhythm(unroll_steps=2)}, {"w": ["v"]})
    table(schedule, ["w"], 3)
    schedule.upper_update_every("w", 2)
    # Step 3 began a loop; the upper update comes after it and the next, recorded in the last one.
    assert table(schedule, ["w"], 6) == [
        "w4",
        "w:LOOP_START w5",
        "w6* v:LOOP_START v2",
        "w:LOOP_START w7",
        "w8",
        "w:LOOP_START w9",
    ]
    schedule.upper_update_every("w", 1)
    assert table(schedule, ["w"], 1) == ["w10* v:LOOP_START v3"]


def test_a_loop_that_hands_nothing_over_is_not_taken_back() -> None:
    schedule = Schedule({"w": Rhythm(roll_back=True)}, {"w": ["v"]})
    schedule.upper_update_every("w", 2)
    assert table(schedule, ["w"], 2) == [
        "w:LOOP_START w:SNAPSHOT w1",
        "w:LOOP_START w:SNAPSHOT w2*? v:LOOP_START v1 w:REDO",
    ]


def test_rewiring_keeps_the_interval() -> None:
    schedule = Schedule({}, {"w": ["v"]})
    schedule.upper_update_every("w", 3)
    table(schedule, ["w"], 2)
    other = Schedule({}, {"w": ["v"]})
    other.carry_over(schedule)
    assert table(other, ["w"], 1) == ["w:LOOP_START w3* v:LOOP_START v1"]


@pytest.mark.parametrize("loops", [0, -1, 1.5, True])
def test_an_interval_is_a_number_of_loops(loops: object) -> None:
    with pytest.raises(ValueError, match=r"'w' was given an upper update every .* loops; give 1"):
        Schedule({}, {"w": ["v"]}).upper_update_every("w", loops)  # type: ignore[arg-type]
