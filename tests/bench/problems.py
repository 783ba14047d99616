"""Training problems of any size: our engine, a step of random features, and the equations as written.

Letters: B videos, T snippets, D input width, F embedding width, A key width, K action units, R bottleneck, C classes.
"""

import math
from typing import Any

import harness  # noqa: F401  (puts the repository on the path)
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from aumn.model.aumn import AUMN, StreamNetworks
from aumn.model.losses import Objective
from aumn.model.settings import LossSettings, ModelSettings
from aumn.records import Batch, Step, Video
from aumn.runtime.engines import Engine, build_engine
from aumn.runtime.ranks import Ranks
from aumn.runtime.settings import EngineSettings, OptimizerSettings
from aumn.training.step import train_step
from tests.model import reference

OBJECTIVE = Objective(LossSettings(diversity=0.01, homogeneity=0.02, sparsity=0.05), steps=1)


def make_engine(
    seed: int, width: int, classes: int, *, device: str = "cpu", precision: str = "fp32", **settings: Any
) -> Engine:
    """One stream's network in the engine that trains it."""
    torch.manual_seed(seed)
    network = StreamNetworks.build({"rgb": width}, classes, ModelSettings(**settings))
    how = {"optimizer": OptimizerSettings(), "engine": EngineSettings(precision=precision)}
    return build_engine("ddp", network, Ranks(), torch.device(device), **how)


def make_step(seed: int, videos: int, snippets: int, width: int, classes: int) -> Step:
    """Features as I3D's are: not negative, half of them zero."""
    generator = torch.Generator().manual_seed(seed)
    features_BTD = torch.randn(videos, snippets, width, generator=generator).relu_()
    labels_BC = functional.one_hot(torch.randint(classes, (videos,), generator=generator), classes).float()
    videos_ = tuple(Video(str(index), "", snippets, (), snippets / 25, 25.0) for index in range(videos))
    mask_BT = torch.ones(videos, snippets, dtype=torch.bool)
    batch = Batch(videos_, (snippets,) * videos, tuple(range(videos)), {"rgb": features_BTD}, mask_BT, labels_BC)
    return Step(0, 0, videos, (batch,))


def our_step(engine: Engine, step: Step) -> Tensor:
    """Forward and backward as training does it; the loss. Gradients start from nothing."""
    engine.network.zero_grad()
    return train_step(engine, step, OBJECTIVE)["rgb/total"]


class AsWritten(nn.Module):
    """Eq. 1-14 as a user of the field would write them, batched: X, the values and every snippet's W exist."""

    def __init__(self, net: AUMN) -> None:
        super().__init__()
        taps, width, embedding = net.embed.weight.shape
        self.embed = nn.Conv1d(width, embedding, taps, padding=taps // 2)
        self.query, self.units_KF = net.encode_query, net.memory.units_KF
        self.key, self.hidden = net.memory.encode_key, net.memory.encode_hidden
        bottleneck, _, self.classes = net.memory.values_RFC[:-1].shape
        self.value = nn.Linear(bottleneck, embedding * self.classes)
        with torch.no_grad():
            self.embed.weight.copy_(net.embed.weight.permute(2, 1, 0))
            self.embed.bias.copy_(net.embed.bias)
            self.value.weight.copy_(net.memory.values_RFC[:-1].flatten(1).T)
            self.value.bias.copy_(net.memory.values_RFC[-1].flatten())

    def forward(self, features_BTD: Tensor, labels_BC: Tensor) -> Tensor:
        """The loss of Eq. 14 of videos of one length."""
        embedded_BTF = torch.relu(self.embed(features_BTD.mT)).mT
        queries_BTA = self.query(embedded_BTF)
        scale = math.sqrt(queries_BTA.shape[-1])
        mixed_BTF = embedded_BTF + torch.softmax(queries_BTA @ queries_BTA.mT / scale, dim=-1) @ embedded_BTF
        keys_KA = self.key(self.units_KF)
        values_KFC = self.value(torch.relu(self.hidden(self.units_KF))).view(len(keys_KA), -1, self.classes)
        values_KFC = values_KFC * (7 / len(keys_KA))  # `model.unit_rates`
        similarity_BTK = torch.sigmoid(queries_BTA @ keys_KA.T / scale)
        classifiers_BTFC = torch.einsum("btk,kfc->btfc", similarity_BTK, values_KFC)
        attention_BT = similarity_BTK.max(dim=-1).values
        activation_BTC = torch.einsum("btf,btfc->btc", mixed_BTF, classifiers_BTFC)
        logits_BC = (attention_BT[..., None] * activation_BTC).mean(dim=1)
        return self._loss(logits_BC, labels_BC, attention_BT, similarity_BTK)

    def _loss(self, logits_BC: Tensor, labels_BC: Tensor, attention_BT: Tensor, similarity_BTK: Tensor) -> Tensor:
        targets_BC = labels_BC / labels_BC.sum(dim=1, keepdim=True)
        classification = functional.cross_entropy(logits_BC, targets_BC)
        units_KF = self.units_KF * min(1.0, math.sqrt(7 / len(self.units_KF)))
        diversity = torch.linalg.norm(units_KF @ units_KF.T - torch.eye(len(units_KF), device=logits_BC.device))
        homogeneity = torch.linalg.norm(similarity_BTK.sum(dim=1).softmax(dim=-1).mean(dim=0))
        return classification + 0.01 * diversity + 0.02 * homogeneity + 0.05 * attention_BT.mean()

    def gradients(self) -> dict[str, Tensor]:
        """By the names and in the shapes that AUMN's parameters have."""
        value, bias = self.value.weight.grad, self.value.bias.grad
        assert value is not None
        shape = (-1, len(bias) // self.classes, self.classes)
        return {
            "embed.weight": self.embed.weight.grad.permute(2, 1, 0),
            "embed.bias": self.embed.bias.grad,
            "memory.values_RFC": torch.cat([value.T, bias[None]]).view(shape),
        }


def step_as_written(model: AsWritten, batch: Batch) -> Tensor:
    """Forward and backward; the loss. Gradients start from nothing."""
    model.zero_grad()
    loss = model(batch.features["rgb"], batch.labels_BC)
    loss.backward()
    return loss.detach()


def check_against_reference(engine: Engine, step: Step) -> None:
    """Our loss in float32 is that of the plain reference in float64, on the first and last video of the step."""
    net, (batch,) = engine.network.networks["rgb"], step.micro_batches
    two = [0, len(batch.videos) - 1]
    features = {"rgb": batch.features["rgb"][two]}
    few = Batch(
        (batch.videos[0], batch.videos[-1]),
        batch.lengths[:2],
        (0, 1),
        features,
        batch.mask_BT[two],
        batch.labels_BC[two],
    )
    ours = our_step(engine, Step(0, 0, 2, (few,)))
    with torch.no_grad():
        double = AUMN(features["rgb"].shape[2], batch.labels_BC.shape[1], net.settings).double()
        double.load_state_dict(net.state_dict())
        losses = reference.losses(double, list(features["rgb"].double()), few.labels_BC.double(), "mean")
    weights = {"classification": 1.0, "diversity": 0.01, "homogeneity": 0.02, "sparsity": 0.05}
    expected = sum(weights[name] * loss for name, loss in losses.items())
    assert_close(ours.double().cpu(), expected, rtol=1e-4, atol=1e-5)


def check_against_as_written(engine: Engine, model: AsWritten, step: Step) -> None:
    """Both sides' loss and gradients at this very size, in float32."""
    net, (batch,) = engine.network.networks["rgb"], step.micro_batches
    batch, ours = batch.to(engine.device), our_step(engine, step)
    actual = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    assert_close(ours, step_as_written(model, batch), rtol=1e-4, atol=1e-5)
    expected = {name: parameter.grad for name, parameter in net.named_parameters()} | model.gradients()
    for name, gradient in actual.items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 1e-3, f"gradient of {name} differs by {error:.1e}"
