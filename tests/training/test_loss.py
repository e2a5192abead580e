import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.training.config import FinetuneConfig
from automl.training.loss import distillation_loss, finetune_loss


def make_logits(seed, shape=(6, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def test_the_loss_mixes_smoothed_cross_entropy_and_distillation():
    student, teacher = make_logits(0), make_logits(1)
    config = FinetuneConfig(distill_weight=0.3, distill_temperature=2.0, label_smoothing=0.1)
    p, q = softmax(teacher.numpy() / 2), softmax(student.numpy() / 2)
    divergence = 4 * (p * np.log(p / q)).sum(axis=1).mean()
    target = 0.9 * np.eye(5)[LABELS] + 0.1 / 5
    entropy = -(target * np.log(softmax(student.numpy()))).sum(axis=1).mean()
    loss = finetune_loss(student, LABELS, teacher, config)
    assert loss.item() == pytest.approx(0.7 * entropy + 0.3 * divergence, rel=1e-12)


@given(st.integers(0, 2**31), st.floats(0.5, 20))
@settings(max_examples=30, deadline=None)
def test_the_gradient_of_distillation_is_t_times_the_difference_of_softmaxes(seed, temperature):
    student, teacher = make_logits(seed).requires_grad_(), make_logits(seed + 1).requires_grad_()
    distillation_loss(student, teacher, temperature).backward()
    q, p = ((x / temperature).softmax(dim=1) for x in (student, teacher))
    expected = temperature * (q - p) / len(student)
    assert torch.allclose(student.grad, expected, atol=1e-12)
    assert teacher.grad is None


def test_distilling_from_oneself_has_no_loss_and_no_gradient():
    student = make_logits(0).requires_grad_()
    loss = distillation_loss(student, student.detach(), 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max().item() < 1e-12


def test_a_step_against_the_gradient_comes_closer_to_the_teacher():
    student, teacher = make_logits(0).requires_grad_(), make_logits(1)
    before = distillation_loss(student, teacher, 4.0)
    before.backward()
    after = distillation_loss(student.detach() - 0.1 * student.grad, teacher, 4.0)
    assert after < before


def test_half_outputs_are_compared_in_float32():
    student, teacher = (make_logits(seed, dtype=torch.bfloat16) for seed in (0, 1))
    config = FinetuneConfig(distill_weight=0.5)
    assert finetune_loss(student, LABELS, teacher, config).dtype == torch.float32


def test_labels_and_teacher_are_needed_only_where_they_are_used():
    student, teacher = make_logits(0), make_logits(1)
    finetune_loss(student, None, teacher, FinetuneConfig(distill_weight=1))
    finetune_loss(student, LABELS, None, FinetuneConfig(distill_weight=0))
    with pytest.raises(ValueError, match="distill_weight must be 1 without labels"):
        finetune_loss(student, None, teacher, FinetuneConfig(distill_weight=0.9))
    with pytest.raises(ValueError, match="distill_weight must be 0 without distill_from"):
        finetune_loss(student, LABELS, None, FinetuneConfig(distill_weight=0.1))
