"""The noise scale against autograd, and where single precision would lose it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from weight_decay.errors import UserError
from weight_decay.probes.noise import logit_gradient_norms, noise_scale


def test_noise_scale_is_the_mean_norm_of_the_loss_gradient_at_the_logits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 5)).train()
    inputs, labels = torch.randn(11, 3, 2, 2), torch.randint(0, 5, (11,))
    measured = noise_scale(model, [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])])
    assert model.training
    logits = model.eval()(inputs).detach().requires_grad_()
    F.cross_entropy(logits, labels, reduction="sum").backward()
    torch.testing.assert_close(measured, logits.grad.norm(dim=1).mean())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_fitted_sample_keeps_its_digits() -> None:
    """p_y rounds to 1 in float32 here; the float64 gradient is about 1.4e-9."""
    logits = torch.tensor([[21.0, 0.0, 0.0]])
    exact = torch.softmax(logits.double(), 1) - torch.tensor([[1.0, 0.0, 0.0]])
    measured = logit_gradient_norms(logits, torch.tensor([0]))
    assert measured.item() == pytest.approx(exact.norm().item(), rel=1e-5)


def test_half_precision_logits_are_measured_in_single() -> None:
    logits, labels = torch.tensor([[3.0, 1.0, -2.0]]), torch.tensor([1])
    measured = logit_gradient_norms(logits.bfloat16(), labels)
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured, logit_gradient_norms(logits, labels))


def test_no_samples_is_refused() -> None:
    with pytest.raises(UserError):
        noise_scale(nn.Linear(2, 2), [])
