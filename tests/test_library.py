"""The public API around loops that are not ours: nanoGPT's, Hugging Face's, Lightning's, torchvision's ResNet50."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import weight_decay
from weight_decay.models.gpt import GPT, Sizes


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, weight_decay; dir(weight_decay); sys.exit(bool({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there() -> None:
    optional = {"LightningMeasure": "lightning", "TrainerMeasure": "transformers"}
    for name in weight_decay.__all__:
        if name in optional:
            pytest.importorskip(optional[name])
        assert getattr(weight_decay, name) is not None
    with pytest.raises(AttributeError):
        weight_decay.nothing  # noqa: B018


def by_autograd(model: nn.Module, batch: Tensor) -> list[Tensor]:
    """‖J_i‖² of every sample from one backward pass per output, as written in a textbook."""
    parameters = [p for p in model.eval().parameters() if p.requires_grad]
    squares = []
    for sample in batch:
        outputs = model(sample[None]).flatten()
        rows = [torch.autograd.grad(out, parameters, retain_graph=True, allow_unused=True) for out in outputs]
        squares.append(sum(g.square().sum() for row in rows for g in row if g is not None))
    return squares


class TiedWords(nn.Module):
    """Tied embeddings and positions without a batch: no formula by layers holds."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4), nn.Embedding(2, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = (self.words(tokens) + self.places(torch.arange(tokens.shape[1]))).tanh()
        return F.linear(hidden.mean(1), self.words.weight)


class PlacesOnly(TiedWords):
    """As many positions as the samples that are tried: the shapes alone would let a wrong formula pass."""

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.places(torch.arange(2)).sum(0) + self.words(tokens).mean(1)).square()


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (4, 3, 3)), nn.Conv2d(4, 8, 2, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )


@pytest.mark.parametrize(
    ("model", "batch", "method"),
    [
        (depthwise(), torch.randn(5, 36), "by layers"),
        (nn.Sequential(nn.Linear(6, 4), nn.RMSNorm(4), nn.Linear(4, 3)), torch.randn(5, 6), "by samples"),
        (TiedWords(), torch.randint(0, 7, (5, 2)), "by samples"),
        (PlacesOnly(), torch.randint(0, 7, (2, 3)), "by samples"),
    ],
    ids=["grouped", "rms_norm", "tied", "places"],
)
def test_exact_norm_of_any_network(model: nn.Module, batch: Tensor, method: str) -> None:
    model = model.double()
    batch = batch.double() if batch.is_floating_point() else batch
    expected = torch.stack(by_autograd(model, batch))
    model.train()
    found = weight_decay.jacobian_norm(model, batch)
    assert found.method == method and model.training
    assert found.per_sample_square is not None and found.mean_norm is not None
    torch.testing.assert_close(found.per_sample_square.double(), expected)
    torch.testing.assert_close(found.mean_square.double(), expected.mean())
    estimate = weight_decay.jacobian_norm(model, batch, method="estimate", draws=600)
    assert estimate.standard_error is not None and estimate.mean_norm is None
    assert abs(estimate.mean_square - expected.mean()) < 5 * estimate.standard_error
    again = weight_decay.jacobian_norm(model, batch, method="estimate", draws=600)
    assert torch.equal(estimate.mean_square, again.mean_square)


def test_a_tensor_is_a_batch_and_other_things_are_refused() -> None:
    model = nn.Linear(3, 2)
    assert weight_decay.jacobian_norm(model, torch.randn(4, 3)).per_sample_square.shape == (4,)
    for batch in ([torch.randn(4, 3)], torch.empty(0, 3), {"input": 1}):
        with pytest.raises(weight_decay.UserError):
            weight_decay.jacobian_norm(model, batch)
    named = weight_decay.jacobian_norm(model, {"input": torch.randn(4, 3)})
    assert named.method in ("by layers", "by samples")


def test_decay_groups_are_what_torch_takes() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    sizes = {}
    for rules in ("everything", "except_norms", "matrices", [("^0", 0.5), (".*", 1.0)]):
        groups = weight_decay.decay_groups(model, 0.1, rules)
        torch.optim.AdamW(groups, lr=0.1)
        sizes[str(rules)] = {g["weight_decay"]: len(g["params"]) for g in groups}
    assert list(sizes.values()) == [{0.1: 6}, {0.1: 4, 0.0: 2}, {0.1: 2, 0.0: 4}, {0.05: 2, 0.1: 4}]
    with pytest.raises(weight_decay.UserError, match="sometimes"):
        weight_decay.decay_groups(model, 0.1, "sometimes")


def test_decay_is_rounded_away_in_bfloat16_and_not_in_float32() -> None:
    model = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    lost, kept = weight_decay.decay_kept(optimizer, torch.bfloat16), weight_decay.decay_kept(optimizer)
    assert lost.share == 0 and not lost.kept and "rounded away" in str(lost)
    assert kept.share > 0.99 and kept.kept
    # The same question asked of torch itself: a step of foreach AdamW without gradients in bfloat16.
    narrow = nn.Linear(64, 64).bfloat16()
    for rate, moves in ((1e-3, False), (1.0, True)):
        foreach = torch.optim.AdamW(narrow.parameters(), lr=rate, weight_decay=0.1, foreach=True)
        before, answer = narrow.weight.clone(), weight_decay.decay_kept(foreach)
        narrow.weight.grad, narrow.bias.grad = torch.zeros_like(narrow.weight), torch.zeros_like(narrow.bias)
        foreach.step()
        assert torch.equal(before, narrow.weight) is not moves and answer.kept is moves
    with pytest.raises(weight_decay.UserError, match="AdamW"):
        weight_decay.decay_kept(torch.optim.Adam(model.parameters(), weight_decay=0.1))


def test_ema_reestimates_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = weight_decay.EMA(model, 0.5)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update()
    with pytest.raises(weight_decay.UserError, match="batch norm"):
        ema.model()
    inputs = torch.randn(64, 3)
    average = ema.model(inputs)
    torch.testing.assert_close(average[0].weight.detach(), start + 0.5)
    torch.testing.assert_close(average[1].running_mean, average[0](inputs).mean(0).detach())
    assert torch.equal(model[1].running_mean, torch.zeros(4)) and not average.training and model.training


def test_nanogpts_loop() -> None:
    """Warm-up and cosine, clipping, accumulation, decay on matrices: as nanoGPT's train.py does it, written afresh."""
    torch.manual_seed(0)
    model = GPT(Sizes(1, 2, 16, 8, 32))
    model.initialise(torch.Generator().manual_seed(0))
    groups = weight_decay.decay_groups(model, 0.1, "matrices")
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    tokens = torch.randint(0, 32, (4, 9))
    seen: list[int] = []
    measure = weight_decay.Measure(
        model, optimizer, every=2, batch=tokens[:, :-1], jacobian_every=2, log=lambda step, _: seen.append(step)
    )
    before: list[Tensor] = []
    for step in range(6):
        lr = 1e-2 * (step + 1) / 3 if step < 3 else 1e-2 * 0.5 * (1 + math.cos(math.pi * (step - 3) / 3))
        for group in optimizer.param_groups:
            group["lr"] = lr
        for half in tokens.split(2):
            loss = model.loss(half[:, :-1], half[:, 1:]) / 2
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        before = [p.detach().clone() for p in model.parameters()]
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = 7.0  # a scheduler may have moved on by now
        measure.step(loss)
    old, new = (torch.cat([t.detach().flatten() for t in ts]) for ts in (before, model.parameters()))
    record = measure.records[-1]
    assert seen == [2, 4, 6] and [r["step"] for r in measure.records] == seen
    assert record["lr"] == pytest.approx(lr) and record["weight_decay"] == 0.1
    assert record["weights/norm"] == pytest.approx(float(new.norm()), rel=1e-5)
    assert record["effective_lr/adamw"] == pytest.approx(lr / float(new.norm()), rel=1e-5)
    assert record["update/norm"] == pytest.approx(float((new - old).norm()), rel=1e-4)
    assert record["grad/norm"] == pytest.approx(float(gradient), rel=1e-4)
    angle = torch.acos(torch.dot(old.double(), new.double()) / (old.double().norm() * new.double().norm()))
    assert record["effective_lr/rotation"] == pytest.approx(float(angle), rel=1e-2)
    assert record["effective_lr/adam_coordinate"] > 0 and record["weights/decayed_norm"] < record["weights/norm"]
    assert ["jacobian/mean_square" in r for r in measure.records] == [True, False, True]
    assert measure.frame()["effective_lr/sgd"].notna().all()
    measure.close()


def test_measuring_leaves_the_training_as_it_is() -> None:
    def train(measured: bool) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        inputs = torch.randn(16, 4)
        measure = weight_decay.Measure(model, optimizer, every=1, batch=inputs) if measured else None
        for _ in range(4):
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if measure is not None:
                measure.step()
        return torch.cat([t.flatten().float() for t in model.state_dict().values()])

    assert torch.equal(train(True), train(False))


def test_nothing_is_read_until_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    measure = weight_decay.Measure(model, optimizer, every=1)
    waits: list[str] = []
    for name in ("item", "tolist", "cpu", "__float__", "__bool__", "__int__"):
        real = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda t, *a, _r=real, _n=name, **k: (waits.append(_n), _r(t, *a, **k))[1])
    model(torch.ones(1, 3)).sum().backward()
    measure._about_to_step(optimizer, (), {})
    measure.step(torch.ones(()))
    assert not waits
    assert measure.records[0]["batch/loss"] == 1 and waits


def test_hugging_faces_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    )
    tokens = torch.randint(0, 32, (8, 8))
    callback = weight_decay.TrainerMeasure(every=2, batch={"input_ids": tokens[:2]})
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=4, use_cpu=True, report_to=[], weight_decay=0.1,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in tokens]
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    assert callback.measure is not None
    records = callback.measure.records
    assert [r["step"] for r in records] == [2, 4] and records[0]["weight_decay"] == 0.1
    assert all(r["effective_lr/rotation"] > 0 and r["jacobian/mean_square"] > 0 and r["grad/norm"] > 0 for r in records)


def test_a_lightning_module(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.norms: list[float] = []
            self.losses: list[float] = []

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs)

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            loss = self(batch).square().mean()
            self.losses.append(float(loss.detach()))
            return loss

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.norms.append(float(torch.cat([p.grad.flatten() for p in self.parameters()]).norm()))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(weight_decay.decay_groups(self, 0.1), lr=0.1)

    net, inputs = Net(), torch.randn(16, 3)
    callback = weight_decay.LightningMeasure(every=1, batch=inputs)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback], accumulate_grad_batches=2,
    )  # fmt: skip
    trainer.fit(net, torch.utils.data.DataLoader(inputs, 4))
    assert callback.measure is not None
    records = callback.measure.records
    assert [r["step"] for r in records] == [1, 2]
    assert [r["grad/norm"] for r in records] == pytest.approx(net.norms, rel=1e-5)
    halves = [sum(net.losses[at : at + 2]) / 2 for at in (0, 2)]
    assert [r["batch/loss"] for r in records] == pytest.approx(halves, rel=1e-5)
    assert all(r["jacobian/mean_square"] > 0 for r in records)


def test_torchvisions_resnet50() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(4, 3, 32, 32)
    measure = weight_decay.Measure(model, optimizer, every=1, batch=images[:2])
    F.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    measure.step()
    found = weight_decay.jacobian_norm(model, images[:2])
    assert found.method == "by layers"
    torch.testing.assert_close(found.per_sample_square, torch.stack(by_autograd(model, images[:2])), rtol=1e-3, atol=0)
    assert measure.records[0]["jacobian/mean_square"] == pytest.approx(float(found.mean_square), rel=1e-4)


def test_claims_and_tables_are_frames() -> None:
    results = Path(__file__).resolve().parents[1] / "results"
    claims = weight_decay.load_claims(results)
    assert {"claim", "verdict", "effect"} <= set(claims.columns) and len(claims) > 5
    assert len(weight_decay.load_tables("demo_over_training", "micro", results).summary) > 0
    with pytest.raises(weight_decay.UserError, match="no"):
        weight_decay.load_claims(results / "nowhere")
