"""How large the nets of the check are, and how long it runs them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The settings of the real check, and of the one that only shows that the pieces work.

    language: settings of the language model at a context, `{context}`; vision: of the residual net.
    contexts: with the sequences of a batch at each. width, image: of the net whose Jacobian is taken.
    cells: the command of the cells that share the device. backend: what compiles.
    """

    language: str
    vision: str
    contexts: tuple[tuple[int, int], ...]
    matmul: int
    steps: int
    rounds: int
    job_steps: int
    width: int
    image: int
    cells: str
    backend: str

    def goal(self, text: str) -> str:
        """The goal of a measurement; none at sizes that mean nothing."""
        return text if self.matmul >= 1000 else ""


REAL = Sizes(
    language="data=nanogpt data.vocabulary=50304 data.context={context} model=gpt2_small batch_size={batch}",
    vision="data=procedural data.image_size=32 data.train_size=50000 data.test_size=1000 model=resnet18 model.width=64 "
    "batch_size=128",
    contexts=((256, 64), (1024, 16)),
    matmul=8192,
    steps=20,
    rounds=5,
    job_steps=300,
    width=64,
    image=32,
    cells="experiment=demo_over_training scale=micro 'duration=240 steps'",
    backend="inductor",
)
TINY = Sizes(
    language="data=nanogpt data.vocabulary=50304 data.context=8 model=gpt_micro model.width=8 model.heads=2 "
    "model.layers=1 batch_size=2",
    vision="data=procedural data.image_size=16 data.train_size=256 data.test_size=32 model=resnet18 model.width=2 "
    "batch_size=8 averaging.reestimate_samples=16",
    contexts=((8, 2),),
    matmul=32,
    steps=1,
    rounds=1,
    job_steps=4,
    width=2,
    image=16,
    cells="model.width=2 data.train_size=512 data.test_size=32 batch_size=8 'duration=2 steps' cell=null",
    backend="aot_eager",
)
