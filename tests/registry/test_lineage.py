from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.config import WEIGHTS_DIR
from app.core.errors import WeightsError
from app.registry.lineage import LINEAGE, Lineage, ModelScores, TrainingRecord, read_lineage

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
FAMILY = Lineage(
    trainings={
        A: TrainingRecord(model="a", subjects=("s1", "s2")),
        B: TrainingRecord(model="b", subjects=("s2", "s3"), started_from=A),
        C: TrainingRecord(model="c", subjects=("s4",), first_stage=B, teacher=D),
        D: TrainingRecord(model="d", subjects=("s5",), scores=ModelScores(subjects=("s9",), mean={"dice_WT": 0.5})),
    }
)


def test_ancestry_is_all_that_weights_were_made_from():
    assert set(FAMILY.ancestry([A]).trainings) == {A}
    assert set(FAMILY.ancestry([B]).trainings) == {A, B}
    assert set(FAMILY.ancestry([C]).trainings) == {A, B, C, D}
    assert FAMILY.ancestry(["e" * 64]).trainings == {}
    assert FAMILY.ancestry([C]).subjects == {"s1", "s2", "s3", "s4", "s5"}


def test_a_circle_ends():
    circle = Lineage(trainings={A: TrainingRecord(model="a", started_from=A, subjects=("s1",))})
    assert circle.ancestry([A]).subjects == {"s1"}


@given(
    st.lists(
        st.builds(
            TrainingRecord,
            model=st.text(max_size=5),
            subjects=st.lists(st.text(max_size=3), max_size=4).map(tuple),
            minutes=st.none() | st.floats(0, 1e6),
            scores=st.none() | st.builds(ModelScores, subjects=st.just(("x",)), mean=st.just({"ssim_brain": 0.5})),
        ),
        max_size=4,
    )
)
def test_json_and_back(records):
    lineage = Lineage(trainings={f"{i:064x}": record for i, record in enumerate(records)})
    assert Lineage.from_json(json.loads(json.dumps(lineage.to_json()))) == lineage


def test_a_list_of_subjects_stands_there_once():
    shared = Lineage(trainings={s: TrainingRecord(model="m", subjects=("s1", "s2")) for s in (A, B, C)})
    assert list(shared.to_json()["subject_lists"].values()) == [["s1", "s2"]]


def test_the_later_record_counts():
    newer = Lineage(trainings={A: TrainingRecord(model="new")})
    assert FAMILY.joined(newer).trainings[A].model == "new"
    assert set(FAMILY.joined(newer).trainings) == {A, B, C, D}


def test_scores_are_found_by_the_weights():
    assert FAMILY.scores_of(D).mean == {"dice_WT": 0.5}
    assert FAMILY.scores_of(A) is None
    assert FAMILY.scores_of("e" * 64) is None


def test_a_folder_without_one_has_none(tmp_path):
    assert read_lineage(tmp_path) == Lineage()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"schema": 9}', '{"schema": 1, "subject_lists": {}, "trainings": {"a": {}}}']
)
def test_a_damaged_one_is_named(tmp_path, content):
    (tmp_path / LINEAGE).write_text(content)
    with pytest.raises(WeightsError, match=r"lineage\.json is damaged"):
        read_lineage(tmp_path)


class TestShipped:
    def test_each_training_knows_its_own_task_alone(self):
        """A 3D segmenter has no adversarial loss, a 2D generator no refiner."""
        keys = {"segmentation2d": {"segmentation", "entropy"}, "segmentation3d": {"segmentation", "entropy"},
                "enhancement": {"entropy", "dice", "enhancing"}}  # fmt: skip
        lineage = read_lineage(WEIGHTS_DIR)
        assert {r.task for r in lineage.trainings.values()} >= {*keys, "synthesis"}
        for record in lineage.trainings.values():
            if record.task in keys:
                assert set(record.recipe.get("losses", {})) <= keys[record.task], record.model
            if record.task == "synthesis":
                assert not {"refinement"} & set(record.recipe), record.model

    def test_every_parent_is_there(self):
        lineage = read_lineage(WEIGHTS_DIR)
        parents = {p for r in lineage.trainings.values() for p in r.parents}
        assert parents <= set(lineage.trainings)
