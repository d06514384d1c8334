from __future__ import annotations

import numpy as np
import torch

from app.core.constants import MODALITIES
from app.training.tasks.synthesis_jobs import Job, draw_jobs, draw_mixed_jobs, one_hot
from app.training.tasks.synthesis_recipe import SynthesisData

CPU = torch.device("cpu")


class TestJobs:
    """What each step makes, and from what."""

    def test_algorithm_one_makes_each_in_turn(self):
        jobs = draw_jobs(np.random.default_rng([0, 0]), SynthesisData(), 4)
        assert [j.target for j in jobs] == [0, 1, 2, 3]
        assert all(len(j.members) == 3 for j in jobs)

    def test_a_network_of_some_sequences_learns_to_make_those_only(self):
        data = SynthesisData(targets=("t1c", "t2w"), single_missing=0.5)
        jobs = [draw_jobs(np.random.default_rng([0, step]), data, 1)[0] for step in range(50)]
        assert {MODALITIES[j.target] for j in jobs} == {"t1c", "t2w"}
        assert {m for j in jobs for m in j.members} == set(range(len(MODALITIES)))
        both = draw_jobs(np.random.default_rng([0, 0]), data, 2)
        assert [MODALITIES[j.target] for j in both] == ["t1c", "t2w"]

    def test_what_an_exam_lacks_is_made_and_never_present(self):
        data, t1c = SynthesisData(single_missing=0.5), MODALITIES.index("t1c")
        jobs = [job for step in range(50) for job in draw_jobs(np.random.default_rng([0, step]), data, 2, t1c)]
        assert {j.target for j in jobs} == set(range(len(MODALITIES)))
        assert all(j.members and t1c not in j.members for j in jobs)

    def test_every_target_and_subset_comes(self):
        data = SynthesisData(single_missing=0.3)
        jobs = [draw_jobs(np.random.default_rng([0, step]), data, 1)[0] for step in range(200)]
        assert {len(j.members) for j in jobs} == {1, 2, 3}
        assert {j.target for j in jobs} == set(range(len(MODALITIES)))
        assert all(j.target not in j.members and j.second != j.target for j in jobs)

    def test_its_passes(self):
        first, second = Job(1, (0, 3), 2).first_pass(2, CPU), Job(1, (0, 3), 2).second_pass(2, CPU)
        assert (first.target.tolist(), first.present.tolist()) == ([1, 1], [[1, 0, 0, 1]] * 2)
        assert (second.target.tolist(), second.present.tolist()) == ([2, 2], [[1, 1, 0, 1]] * 2)
        assert (first.members, second.members) == ((0, 3), (0, 1, 3))


class TestMixedJobs:
    """What each sample lacks, when each draws by itself."""

    def _draw(self, data, count, size=200):
        return draw_mixed_jobs(np.random.default_rng(0), data, count, size)

    def test_every_sample_has_each_sequence_made_in_turn(self):
        jobs = self._draw(SynthesisData(), 4)
        order = torch.stack([job.target for job in jobs])
        assert (order.sort(dim=0).values == torch.arange(4)[:, None]).all()
        assert ((order[1:] - order[:-1]) % 4 == 1).all()
        assert set(order[0].tolist()) == {0, 1, 2, 3}

    def test_always_one_is_missing_or_up_to_three_are(self):
        for share, counts in ((1.0, {3}), (0.3, {1, 2, 3})):
            (job,) = self._draw(SynthesisData(single_missing=share), 1)
            assert set(job.present.sum(dim=1).int().tolist()) == counts
            assert not (job.present * one_hot(job.target)).any()
            # The second pass drops one that was there.
            assert (job.present * one_hot(job.second)).sum() == 200

    def test_the_share_of_samples_that_lack_one_alone(self):
        (job,) = self._draw(SynthesisData(single_missing=0.25), 1, 4000)
        counts = job.present.sum(dim=1)
        assert abs((counts == 3).float().mean() - 0.25) < 0.03
        assert abs((counts == 2).float().mean() - 0.375) < 0.03

    def test_targets_are_the_recipes(self):
        jobs = self._draw(SynthesisData(targets=("t1c", "t2w")), 2)
        assert all({MODALITIES[t] for t in job.targets} == {"t1c", "t2w"} for job in jobs)

    def test_pieces_are_those_of_the_batch(self):
        (job,) = self._draw(SynthesisData(single_missing=0.5), 1, 5)
        parts = job.pieces(3)
        assert [len(p.target) for p in parts] == [len(t) for t in torch.zeros(5).chunk(3)]
        assert torch.equal(torch.cat([p.present for p in parts]), job.present)

    def test_its_second_pass_sees_all_but_what_it_makes(self):
        (job,) = self._draw(SynthesisData(single_missing=0.5), 1, 6)
        second = job.second_pass(6, CPU)
        assert torch.equal(second.target, job.second)
        assert torch.equal(second.present, 1 - one_hot(job.second))
        assert second.members is None
