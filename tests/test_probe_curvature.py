"""Curvature products and spectra against dense matrices built by torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional as F

from weight_decay.errors import UserError
from weight_decay.probes import lanczos
from weight_decay.probes.curvature import Curvature

SAMPLES, CLASSES = 9, 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small batch-normalised net in training mode, one bias frozen; 67 trainable parameters."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2),
        nn.Softplus(),  # smooth, so that the Hessian is not its Gauss-Newton part within each layer
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).double()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2.0)
    net[4].bias.requires_grad_(False)
    return net.train()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    source = generator(1)
    images = torch.randn(SAMPLES, 3, 4, 4, generator=source, dtype=torch.float64)
    return images, torch.randint(0, CLASSES, (SAMPLES,), generator=source)


@pytest.fixture(scope="module")
def curvature(model: nn.Module, data: tuple[Tensor, Tensor]) -> Curvature:
    images, labels = data
    return Curvature(model, [(images[:4], labels[:4]), (images[4:], labels[4:])])


@pytest.fixture(scope="module")
def dense(model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """H, G, Σ and its decoupled version as (P, P) matrices, from the definitions."""
    images, labels = data
    named = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    shapes = [p.shape for p in named.values()]

    def logits(flat: Tensor) -> Tensor:
        pieces = flat.split([shape.numel() for shape in shapes])
        parameters = {name: piece.view(shape) for name, piece, shape in zip(named, pieces, shapes, strict=True)}
        return functional_call(model, parameters, (images,))

    flat = torch.cat([p.flatten() for p in named.values()])
    model.eval()
    full_hessian = hessian(lambda w: F.cross_entropy(logits(w), labels))(flat)
    jacobian = jacrev(logits)(flat)  # (N, C, P)
    gradients = jacrev(lambda w: F.cross_entropy(logits(w), labels, reduction="none"))(flat)  # (N, P)
    at_logits = torch.softmax(logits(flat), 1) - F.one_hot(labels, CLASSES)
    loss_hessians = torch.stack(
        [hessian(lambda h, y=y: F.cross_entropy(h, y))(h) for h, y in zip(logits(flat), labels, strict=True)]
    )
    model.train()
    sigma = at_logits.norm(dim=1).mean()
    return {
        "hessian": full_hessian,
        "gauss_newton": torch.einsum("ncp,ncd,ndq->pq", jacobian, loss_hessians, jacobian) / SAMPLES,
        "gradient_noise": gradients.T @ gradients / SAMPLES,
        "decoupled_noise": sigma**2 * torch.einsum("ncp,ncq->pq", jacobian, jacobian) / SAMPLES,
    }


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "gradient_noise", "decoupled_noise"])
def test_products_are_those_of_the_dense_matrix(
    curvature: Curvature, dense: dict[str, Tensor], model: nn.Module, kind: str
) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    vector = torch.randn(len(curvature.weights), generator=generator(2), dtype=torch.float64)
    measured = getattr(curvature, kind)(vector)
    torch.testing.assert_close(measured, dense[kind] @ vector, rtol=1e-9, atol=1e-12)
    assert not measured.requires_grad
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_matrices_differ_so_that_a_mix_up_would_show(dense: dict[str, Tensor]) -> None:
    names = list(dense)
    for i, left in enumerate(names):
        for right in names[i + 1 :]:
            assert (dense[left] - dense[right]).norm() > 0.05 * dense[left].norm(), (left, right)


def test_trace_and_top_eigenvalue_of_the_hessian(curvature: Curvature, dense: dict[str, Tensor]) -> None:
    exact = dense["hessian"]
    estimate = lanczos.trace(curvature.hessian, curvature.weights, generator(3), draws=200)
    # For Rademacher vectors Var(vᵀAv) = 2 Σ_{i≠j} A_ij².
    spread = (2 * (exact.square().sum() - exact.diagonal().square().sum())).sqrt() / 200**0.5
    torch.testing.assert_close(estimate.standard_error, spread, rtol=0.3, atol=0)
    assert (estimate.value - exact.trace()).abs() < 4 * spread
    top = lanczos.top_eigenvalue(curvature.hessian, curvature.weights, generator(4), steps=40, tolerance=1e-8)
    torch.testing.assert_close(top.value, torch.linalg.eigvalsh(exact)[-1], rtol=1e-7, atol=0)
    assert top.residual <= 1e-8 * top.value


def test_top_eigenvalue_is_the_most_positive_and_says_when_it_is_rough() -> None:
    matrix = torch.diag(torch.cat([torch.tensor([-9.0, 2.0]), torch.linspace(-1, 1.9, 60)])).double()
    like = matrix[0]
    sharp = lanczos.top_eigenvalue(lambda v: matrix @ v, like, generator(), steps=62, tolerance=1e-9)
    torch.testing.assert_close(sharp.value, torch.tensor(2.0, dtype=torch.float64))
    rough = lanczos.top_eigenvalue(lambda v: matrix @ v, like, generator(), steps=3, tolerance=1e-9)
    assert rough.residual > 0.01
    assert (matrix.diagonal() - rough.value).abs().min() <= rough.residual


def test_spectrum_has_the_moments_of_the_start_vectors(curvature: Curvature, dense: dict[str, Tensor]) -> None:
    """m steps of Lanczos integrate every polynomial of degree up to 2m - 1 exactly."""
    exact, steps, draws = dense["hessian"], 5, 3
    measured = lanczos.spectrum(curvature.hessian, curvature.weights, generator(5), steps, draws)
    source = generator(5)
    for draw in range(draws):
        start = torch.randn(len(exact), generator=source, dtype=torch.float64)
        for power in range(2 * steps):
            expected = start @ torch.linalg.matrix_power(exact, power) @ start / start.square().sum()
            moment = (measured.weights[draw] * measured.nodes[draw] ** power).sum()
            torch.testing.assert_close(moment, expected, rtol=1e-8, atol=1e-12)


def test_spectrum_averages_to_the_traces(dense: dict[str, Tensor]) -> None:
    matrix = dense["gauss_newton"]
    measured = lanczos.spectrum(lambda v: matrix @ v, matrix[0], generator(6), steps=12, draws=300)
    for power in (1, 2):
        moments = (measured.weights * measured.nodes**power).sum(1)
        expected = torch.linalg.matrix_power(matrix, power).trace() / len(matrix)
        assert (moments.mean() - expected).abs() < 4 * moments.std() / 300**0.5


def test_spectrum_of_a_matrix_of_low_rank_ends_early() -> None:
    matrix = torch.diag(torch.tensor([3.0, 3.0, -1.0, 0.0, 0.0, 0.0])).double()
    measured = lanczos.spectrum(lambda v: matrix @ v, matrix[0], generator(7), steps=6, draws=2)
    for nodes, weights in zip(measured.nodes, measured.weights, strict=True):
        found = nodes[weights > 1e-12].sort().values
        torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 3.0], dtype=torch.float64))
        assert weights.sum().item() == pytest.approx(1)


def test_cosine_similarity_of_hessian_and_noise(curvature: Curvature, dense: dict[str, Tensor]) -> None:
    """Fig 13's measure, against the same draws through the dense matrices."""
    measured = lanczos.cosine_similarity(
        curvature.hessian, curvature.gradient_noise, curvature.weights, generator(8), draws=6
    )
    source = generator(8)
    cosines = []
    for _ in range(6):
        vector = torch.randn(len(curvature.weights), generator=source, dtype=torch.float64)
        left, right = dense["hessian"] @ vector, dense["gradient_noise"] @ vector
        cosines.append(left @ right / left.norm() / right.norm())
    torch.testing.assert_close(measured.value, torch.stack(cosines).mean(), rtol=1e-9, atol=0)
    torch.testing.assert_close(measured.standard_error, torch.stack(cosines).std() / 6**0.5, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Curvature(nn.Linear(2, 2), []),
        lambda: Curvature(nn.Linear(2, 2).requires_grad_(False), [(torch.ones(1, 2), torch.zeros(1).long())]),
        lambda: lanczos.trace(lambda v: v, torch.ones(3), generator(), draws=1),
        lambda: lanczos.spectrum(lambda v: v, torch.ones(3), generator(), steps=2, draws=0),
        lambda: lanczos.top_eigenvalue(lambda v: v, torch.ones(3), generator(), steps=0, tolerance=0.1),
    ],
)
def test_bad_calls_are_refused(call) -> None:
    with pytest.raises(UserError):
        call()
