from __future__ import annotations

import pytest
import torch

from app.networks.cgsamr import losses as L
from tests.training.helpers import gradient_of
from tests.training.tasks.cgsamr.helpers import opened

RECIPE = {"recipe": "ucgsamr_compact"}
#: As published, in full precision.
PLAIN = ["cgsamr.outline_noise=0", "schedule.precision=fp32"]
STREAMS = {f"{name}_{domain}" for name in ("reconstruction", "cycle", "confidence", "adversarial") for domain in (1, 2)}


def test_every_stream_teaches(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data, **RECIPE)
    moved = []
    losses = task.step(source, 0, 1, lambda name: moved.append(name) is None)
    assert set(losses) == STREAMS | {"darkness_2", "tissue_2", "discriminator_1", "discriminator_2"}
    assert moved == ["translators", "discriminators"]
    network = task.network
    for part in (network.encoder1, network.decoder1, network.encoder2, network.decoder2, *task.discriminators.values()):
        assert gradient_of(part).abs().sum() > 0


def test_the_streams_by_their_definitions(paired_subjects, training_data):
    """Equations 7 and 9, of networks without random parts."""
    task, _ = opened(paired_subjects, training_data, *PLAIN, **RECIPE)
    x, y, network = torch.rand(1, 7, 64, 64), torch.rand(1, 4, 64, 64) * 2 - 1, task.network
    losses, (found, crossed) = task.losses(x, y)
    e1, f1, e2, f2 = network.encoder1, network.decoder1, network.encoder2, network.decoder2
    assert losses["reconstruction_1"].item() == pytest.approx((x - f1(e1(x))).abs().mean().item(), rel=1e-4)
    assert losses["reconstruction_2"].item() == pytest.approx((y - f2(e2(y)).image).abs().mean().item(), rel=1e-4)
    assert torch.allclose(found, f1(e2(y)), atol=1e-5)
    assert torch.allclose(crossed, f2(e1(x)).image, atol=1e-5)
    assert losses["cycle_1"].item() == pytest.approx((x - f1(e2(crossed))).abs().mean().item(), rel=1e-4)
    assert losses["cycle_2"].item() == pytest.approx((y - f2(e1(found)).image).abs().mean().item(), rel=1e-4)
    half, cycle = L.half_scale(y), f2(e1(found))
    expected = L.confidence_loss(cycle.intermediate, cycle.confidence, half, 0.1)
    assert losses["confidence_2"].item() == pytest.approx(expected.item(), rel=1e-3)
    back = f2(e2(y))
    expected = L.confidence_loss(back.intermediate, back.confidence, half, 0.1)
    assert losses["confidence_1"].item() == pytest.approx(expected.item(), rel=1e-3)
    # Equation 8, for the translators.
    for number, (name, false) in enumerate({"outlines": found, "exams": crossed}.items(), start=1):
        judged = L.adversarial_loss([task.discriminators[name](false)])
        assert losses[f"adversarial_{number}"].item() == pytest.approx(judged.item(), rel=1e-4)


def test_the_made_brain_alone_must_not_be_dark(paired_subjects, training_data):
    task, _ = opened(paired_subjects, training_data, *PLAIN, **RECIPE)
    x, y = torch.zeros(1, 7, 64, 64), torch.rand(1, 4, 64, 64) * 2 - 1
    # Half of the brain is normal, half lesion.
    x[:, 0, :32, :16], x[:, 2, :32, 16:32] = 1, 1
    losses, (_, crossed) = task.losses(x, y)
    expected = torch.relu(-0.8 - crossed[:, :, :32, :32]).mean()
    assert losses["darkness_2"].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)


def test_tissues_are_as_bright_as_in_the_atlas(paired_subjects, training_data):
    task, _ = opened(paired_subjects, training_data, *PLAIN, **RECIPE)
    x, y = torch.zeros(1, 7, 64, 64), torch.rand(1, 4, 64, 64) * 2 - 1
    # White matter in the normal half; fluid in the lesion does not count.
    x[:, 0, :32, :16], x[:, 4, :32, :16] = 1, 1
    x[:, 2, :32, 16:32], x[:, 6, :32, 16:32] = 1, 1
    losses, (_, crossed) = task.losses(x, y)
    assert task.levels.shape == (4, 3)
    away = (crossed[0, :, :32, :16].mean(dim=(1, 2)) - task.levels[:, 0]).abs()
    assert losses["tissue_2"].item() == pytest.approx(torch.relu(away - 0.1).sum().item() / 12, rel=1e-3)


def test_each_discriminator_judges_its_own_domain(paired_subjects, training_data):
    """Equation 8: of outlines F1(E2(y)) is false, of exams F2(E1(x))."""
    task, _ = opened(paired_subjects, training_data, *PLAIN, **RECIPE)
    x, y = torch.rand(2, 7, 64, 64), torch.rand(2, 4, 64, 64) * 2 - 1
    found, crossed = torch.rand_like(x), torch.rand_like(y)
    totals = {}
    task._discriminate(x, y, [(found, crossed)], totals)
    for number, (name, false, true) in enumerate((("outlines", found, x), ("exams", crossed, y)), start=1):
        network = task.discriminators[name]
        expected = L.discriminator_loss([network(false)], [network(true)])
        assert totals[f"discriminator_{number}"] == pytest.approx(expected.item(), rel=1e-4)


def test_all_terms_are_summed_with_their_weights(paired_subjects, training_data):
    """Equation 10."""
    task, _ = opened(paired_subjects, training_data, "losses.cycle=7", **RECIPE)
    assert task.weight_of("cycle_1") == task.weight_of("cycle_2") == 7
    assert task.weight_of("confidence_2") == task.recipe.losses.confidence


def test_the_translators_pass_sums_its_terms_and_spares_the_discriminators(paired_subjects, training_data):
    weights = {
        "reconstruction": 10.0,
        "cycle": 7.0,
        "confidence": 3.0,
        "adversarial": 0.5,
        "darkness": 2.0,
        "tissue": 3.0,
    }
    changes = [f"losses.{name}={value}" for name, value in weights.items()]
    settings = [*PLAIN, *changes]
    task, source = opened(paired_subjects, training_data, *settings, **RECIPE)
    outlines, exams = task._slices(source.outlines_at(0)), task._slices(source.at(0))
    losses, _ = task.losses(outlines.inputs, exams.exam)
    sum(weights[name.rpartition("_")[0]] * value for name, value in losses.items()).backward()
    assert gradient_of(task.discriminators).abs().sum() == 0
    expected = gradient_of(task.network).clone()
    task.step(source, 0, 1, lambda _: True)
    torch.testing.assert_close(gradient_of(task.network), expected, rtol=1e-4, atol=1e-6)


def test_without_adversary(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data, "losses.adversarial=0", **RECIPE)
    moved = []
    losses = task.step(source, 0, 2, lambda name: moved.append(name) is None)
    assert set(losses) == {"darkness_2", "tissue_2", *(name for name in STREAMS if "adversarial" not in name)}
    assert moved == ["translators"]


def test_pictures(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data, **RECIPE)
    assert [len(row) for row in task.pictures(source.sampler)] == [3, 3, 3, 3, 2, 2]


def test_it_learns_one_batch_by_heart(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data, "losses.adversarial=0", **RECIPE)
    optimizer = torch.optim.Adam(task.network.parameters(), lr=1e-2)
    losses = [task.step(source, 0, 1, lambda _: optimizer.step() is None) for _ in range(20)]
    for name in ("reconstruction_1", "reconstruction_2"):
        assert losses[-1][name] < 0.7 * losses[0][name]


def test_outlines_are_judged_through_noise(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data, "cgsamr.outline_noise=0.5", **RECIPE)
    seen = []
    task.discriminators["outlines"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for step in (0, 0, 1):
        task.step(source, step, 1, lambda _: True)
    # Three times in a step: what was found to teach the translators, then false and true.
    assert len(seen) == 9
    outside = seen[2][:, :, 0, 0]
    assert outside.abs().max() > 0
    assert seen[2].std() > 0.45
    assert torch.equal(seen[2] != seen[5], torch.zeros_like(seen[2], dtype=torch.bool))
    assert not torch.equal(seen[2], seen[8])
    assert task._noisy(torch.zeros(1, 7, 200, 200)).std().item() == pytest.approx(0.5, abs=0.01)
