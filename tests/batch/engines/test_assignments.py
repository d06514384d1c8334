from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.batch.engines.assignments import MOST_TRIES, Assignments
from app.data.cases import Case


def _assignments(count: int) -> Assignments:
    return Assignments([Case(f"s{i}", {}) for i in range(count)])


@given(st.integers(0, 12), st.integers(1, 4), st.integers(1, 5), st.sets(st.integers(0, 11)), st.randoms())
def test_every_subject_ends_once_and_only_killers_fail(count, workers, depth, killers, random):
    """Workers die whenever their network reaches a killer, and lose all that they have."""
    assignments, busy = _assignments(count), [[] for _ in range(workers)]
    ended = []
    while assignments.left or any(busy):
        for tasks in busy:
            while (task := assignments.next_for(tasks, depth)) is not None:
                tasks.append(task)
        tasks = random.choice([tasks for tasks in busy if tasks])
        if tasks[0].number in killers:
            outcomes = [assignments.lose(task) for task in tasks]
            ended += [(o.subject, "failed") for o in outcomes if o is not None]
            tasks.clear()
        else:
            ended.append((tasks.pop(0).case.subject, "made"))
    expected = [(f"s{i}", "failed" if i in killers else "made") for i in range(count)]
    assert sorted(ended) == sorted(expected)


def test_a_subject_is_tried_twice_then_failed_by_name():
    assignments = _assignments(1)
    outcomes = []
    for _ in range(MOST_TRIES):
        task = assignments.next_for([], depth=5)
        outcomes.append(assignments.lose(task))
    assert outcomes[0] is None
    assert (outcomes[1].subject, outcomes[1].status) == ("s0", "failed")
    assert "worker died" in outcomes[1].error
    assert assignments.left == 0


def test_who_was_with_a_killer_is_tried_alone():
    assignments = _assignments(3)
    first = [assignments.next_for([], 5), assignments.next_for([], 5)]
    for task in first:
        assignments.lose(task)
    alone = assignments.next_for([], 5)
    assert alone == first[0]
    assert assignments.next_for([alone], 5) is None
    # A worker that is at work on others goes on with those that are under no suspicion.
    assert assignments.next_for([first[1]], 1) is None


def test_at_the_end_nothing_more_is_handed_out():
    assignments = _assignments(2)
    assignments.ended = True
    assert assignments.next_for([], 5) is None
    assert assignments.left == 0


def test_what_nobody_is_left_for_fails_by_name():
    assignments = _assignments(2)
    assert [o.subject for o in assignments.give_up()] == ["s0", "s1"]
    assert assignments.left == 0
