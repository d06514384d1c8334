from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.training.tasks.cgsamr.outlines import slices_of
from tests.training.helpers import gradient_of
from tests.training.tasks.cgsamr.helpers import opened

TERMS = {"adversarial", "feature", "shape", "confidence", "l1"}


def _step(task, source, step=0, pieces=1):
    moved = []
    return task.step(source, step, pieces, lambda name: moved.append(name) is None), moved


def test_every_network_learns(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data)
    losses, moved = _step(task, source)
    assert set(losses) == {*TERMS, "discriminators"}
    assert moved == ["generator", "segmenter", "discriminators"]
    assert all(torch.isfinite(v) for v in losses.values())
    for network in (task.generator, task.segmenter, *task.discriminators.networks):
        assert gradient_of(network).abs().sum() > 0


@pytest.mark.parametrize("term", sorted(TERMS))
def test_a_loss_of_weight_0_is_left_out(paired_subjects, training_data, term):
    task, source = opened(paired_subjects, training_data, f"losses.{term}=0")
    losses, _ = _step(task, source)
    assert set(losses) == {*TERMS, "discriminators"} - {term}


def test_without_adversary_and_shape_there_is_one_network(paired_subjects, training_data):
    changes = [f"losses.{name}=0" for name in ("adversarial", "feature", "shape")]
    task, source = opened(paired_subjects, training_data, *changes)
    assert _step(task, source)[1] == ["generator"]
    assert list(task.networks) == ["generator"]


@pytest.mark.parametrize(
    "changes",
    [
        ["cgsamr.form='pix2pix'", "cgsamr.labelwise=false", "cgsamr.scales=1", "losses.shape=0", "losses.feature=0"],
        ["cgsamr.stretch_out=false"],
        ["cgsamr.labelwise=false"],
        ["cgsamr.prior='none'"],
        ["cgsamr.confidence=false"],
    ],
    ids=str,
)
def test_every_variant_of_the_tables(paired_subjects, training_data, changes):
    task, source = opened(paired_subjects, training_data, *changes)
    losses, _ = _step(task, source)
    assert all(torch.isfinite(v) for v in losses.values())
    rows = task.pictures(source.sampler)
    assert len(rows) == 5
    assert all(np.isfinite(image).all() for row in rows for image in row)


def test_the_generators_pass_sums_its_terms_and_spares_the_discriminators(paired_subjects, training_data):
    """Equation 6: adversarial + 5 feature + shape + confidence, here with other weights, and the error of ours."""
    weights = {"adversarial": 0.5, "feature": 5.0, "shape": 2.0, "confidence": 3.0, "l1": 4.0}
    changes = [f"losses.{name}={value}" for name, value in weights.items()]
    task, source = opened(paired_subjects, training_data, "cgsamr.norm='instance'", *changes)
    slices = slices_of(source.at(0), task.recipe.augmentation, task.recipe.architecture, task.device)
    losses, _ = task.losses(slices)
    assert set(losses) == set(weights)
    sum(weights[name] * value for name, value in losses.items()).backward()
    assert gradient_of(task.discriminators).abs().sum() == 0
    expected = [gradient_of(network).clone() for network in (task.generator, task.segmenter)]
    _step(task, source)
    for network, gradient in zip((task.generator, task.segmenter), expected, strict=True):
        torch.testing.assert_close(gradient_of(network), gradient, rtol=1e-4, atol=1e-6)


def test_the_segmenter_learns_from_real_and_from_made_exams(paired_subjects, training_data):
    """Equation 5 has U(y) and U(G(x))."""
    task, source = opened(paired_subjects, training_data)
    slices = slices_of(source.at(0), task.recipe.augmentation, task.recipe.architecture, task.device)
    made, exam = (torch.rand_like(slices.exam).requires_grad_() for _ in range(2))
    task._shape(replace(slices, exam=exam), made).backward()
    assert made.grad.abs().sum() > 0
    assert exam.grad.abs().sum() > 0


def test_the_segmenter_teaches_the_generator(paired_subjects, training_data):
    alone = [f"losses.{name}=0" for name in ("adversarial", "feature", "confidence", "l1")]
    task, source = opened(paired_subjects, training_data, *alone)
    _step(task, source)
    assert gradient_of(task.generator).abs().sum() > 0


def test_lambda_falls_once_and_outlives_an_interruption(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data)
    assert task.task_state == {"confident": 0.0}
    slices = slices_of(source.at(0), task.recipe.augmentation, task.recipe.architecture, task.device)
    for branch in task.generator.decoder.branches:
        torch.nn.init.constant_(branch.judgement.layers[-1].bias, 5.0)
    task.losses(slices)
    assert task.task_state == {"confident": 1.0}
    for branch in task.generator.decoder.branches:
        torch.nn.init.constant_(branch.judgement.layers[-1].bias, -5.0)
    task.losses(slices)
    assert task.task_state == {"confident": 1.0}
    other, _ = opened(paired_subjects, training_data)
    other.restore_task_state(task.task_state)
    assert other.confident


def test_running_means_are_in_the_average(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data)
    _step(task, source)
    for mean, value in zip(task.average.buffers(), task.generator.buffers(), strict=True):
        assert torch.equal(mean, value)


def test_batches_are_cut_for_memory(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data)
    losses, moved = _step(task, source, pieces=2)
    assert set(losses) == {*TERMS, "discriminators"}
    assert moved == ["generator", "segmenter", "discriminators"]


def test_it_learns_one_batch_by_heart(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data, "losses.adversarial=0", "losses.feature=0", "losses.shape=0")
    optimizer = torch.optim.Adam(task.generator.parameters(), lr=1e-2)
    losses = [task.step(source, 0, 1, lambda _: optimizer.step() is None)["l1"] for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


def test_discriminators_may_learn_slower(paired_subjects, training_data):
    task, _ = opened(paired_subjects, training_data, "optimizer.discriminator_rate=0.25")
    assert [task.rate_factor(n) for n in task.networks] == [1, 1, 0.25]
