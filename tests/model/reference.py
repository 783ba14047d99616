"""The paper's equations as written: W, the values and X are built, videos come one at a time, nothing is padded.

Every function takes one stream's AUMN for its parameters and works in their dtype (the tests use float64).
"""

import math

import torch
from torch import Tensor

from aumn.model.aumn import AUMN


def embed(net: AUMN, features_TD: Tensor) -> Tensor:  # Eq. 1
    for layer in (net.embed, *net.embed_deeper):
        taps = len(layer.weight)
        padded_DP = torch.nn.functional.pad(features_TD.T, ((taps - 1) // 2, taps // 2))
        out_FT = torch.nn.functional.conv1d(padded_DP[None], layer.weight.permute(2, 1, 0), layer.bias)[0]
        features_TD = torch.relu(out_FT.T)
    return features_TD


def queries(net: AUMN, embedded_TF: Tensor) -> Tensor:
    return (embedded_TF @ net.encode_query.weight.T + net.encode_query.bias) * net.encode_query.rate


def keys_and_values(net: AUMN) -> tuple[Tensor, Tensor]:  # Eq. 2, 3
    memory = net.memory
    key = memory.encode_key
    keys_KA = (memory.units_KF @ key.weight.T + key.bias) * key.rate
    hidden_KR = torch.relu(memory.units_KF @ memory.encode_hidden.weight.T + memory.encode_hidden.bias)
    w2_RFC, b2_FC = memory.values_RFC[:-1], memory.values_RFC[-1]
    values_KFC = torch.einsum("kr,rfc->kfc", hidden_KR, w2_RFC) + b2_FC
    return keys_KA, values_KFC * (7 / net.settings.units) if net.settings.unit_rates else values_KFC


def video(net: AUMN, features_TD: Tensor, mixing: float = 1.0) -> dict[str, Tensor]:
    """Every quantity of Eq. 1-8, 11 and 15 for one video; `mixing` times Eq. 4's sum over snippets."""
    embedded_TF = embed(net, features_TD)
    queries_TA = queries(net, embedded_TF)
    scale = queries_TA.shape[1] ** 0.5
    mixed_TF = embedded_TF
    if net.settings.self_attention:
        compared_TA = queries_TA
        if net.settings.centred_queries:
            compared_TA = queries_TA - queries_TA.mean(0)
            compared_TA = scale * compared_TA / compared_TA.norm(dim=1, keepdim=True).clamp_min(1e-12)
        similarity_TT = torch.softmax(compared_TA @ compared_TA.T / scale, dim=1)
        mixed_TF = (
            mixing * similarity_TT + torch.eye(len(features_TD), dtype=features_TD.dtype)
        ) @ embedded_TF  # Eq. 4
    keys_KA, values_KFC = keys_and_values(net)
    s_TK = torch.sigmoid(queries_TA @ keys_KA.T / scale)  # Eq. 5
    w_TFC = torch.einsum("tk,kfc->tfc", s_TK, values_KFC)  # Eq. 6
    a_T = s_TK.max(1).values  # Eq. 7
    cas_TC = torch.einsum("tf,tfc->tc", mixed_TF, w_TFC)
    logits_C = torch.stack([_pool(net, a_T, cas_T) for cas_T in cas_TC.T])
    if net.class_bias_C is not None:
        cas_TC, logits_C = cas_TC + net.class_bias_C, logits_C + net.class_bias_C
    return {
        "attention_T": a_T,
        "logits_C": logits_C,
        "video_C": _probabilities(net, logits_C),  # Eq. 8
        "cas_TC": torch.stack([_probabilities(net, cas_C) for cas_C in cas_TC]),  # Eq. 15
        "unit_sums_K": s_TK.sum(0),
        "shares_K": s_TK.sum(0).softmax(0),  # Eq. 11
    }


def _probabilities(net: AUMN, evidence_C: Tensor) -> Tensor:
    exponentials_C = torch.exp(evidence_C)
    return exponentials_C / (exponentials_C.sum() if net.class_bias_C is None else 1 + exponentials_C)


def _pool(net: AUMN, a_T: Tensor, cas_T: Tensor) -> Tensor:
    if not net.settings.weighted_pooling:
        a_T = torch.ones_like(a_T)
    highest = (a_T * cas_T).argsort()[-math.ceil(net.settings.pooling_share * len(a_T)) :]
    return (a_T * cas_T)[highest].sum() / (a_T[highest].sum() if net.settings.normalised_pooling else len(highest))


def pseudo_labels(nets: list[AUMN], streams: list[list[Tensor]], labels_BC: Tensor) -> list[Tensor]:
    """Each stream's mean over the videos of the cross-entropy that both streams' class activations teach."""
    errors: list[list[Tensor]] = [[] for _ in nets]
    for label_C, *features in zip(labels_BC, *streams, strict=True):
        outs = [video(net, features_TD) for net, features_TD in zip(nets, features, strict=True)]
        own = [out["cas_TC"] * label_C for out in outs]  # of a video without a label: zero, and never above its mean
        evidence_T = sum(cas_TC.max(1).values for cas_TC in own) / len(outs)
        for out, error in zip(outs, errors, strict=True):
            a_T = out["attention_T"]
            right_T = torch.stack([a if e > evidence_T.mean() else 1 - a for a, e in zip(a_T, evidence_T, strict=True)])
            error.append(-right_T.log().mean())
    return [torch.stack(error).mean() for error in errors]


def prototypes(net: AUMN, videos: list[Tensor], labels_BC: Tensor) -> Tensor:
    """The mean over the videos of what the snippets that a video is surest of should be like."""
    errors = []
    for features_TD, label_C in zip(videos, labels_BC, strict=True):
        cas_TC, embedded_TF = video(net, features_TD)["cas_TC"], embed(net, features_TD)
        length_T = embedded_TF.norm(dim=1).clamp_min(1e-12)
        cosine_TP = embedded_TF @ net.prototypes_PF.T / length_T[:, None] / net.prototypes_PF.norm(dim=1)
        wrong_TP = -torch.log_softmax(cosine_TP / 0.1, 1)
        count, own = math.ceil(0.05 * len(features_TD)), label_C.nonzero().flatten().tolist()
        parts = [wrong_TP[cas_TC[:, label].argsort(descending=True)[:count], label].mean() for label in own]
        highest_T = (cas_TC[:, own] if own else cas_TC).max(1).values
        errors.append(torch.stack([*parts, wrong_TP[highest_T.argsort()[:count], -1].mean()]).mean())
    return torch.stack(errors).mean()


def losses(net: AUMN, videos: list[Tensor], labels_BC: Tensor, sparsity_reduction: str) -> dict[str, Tensor]:
    """Eq. 9, 10, 12, 13 over a whole batch."""
    outs = [video(net, features_TD) for features_TD in videos]
    cross_entropies = [
        -(label / label.sum() * torch.log(out["video_C"])).sum() if label.any() else torch.tensor(0.0).to(label)
        for label, out in zip(labels_BC, outs, strict=True)
    ]
    if net.class_bias_C is not None:
        cross_entropies = [
            -torch.where(label == 1, out["video_C"], 1 - out["video_C"]).log().sum()
            for label, out in zip(labels_BC, outs, strict=True)
        ]
    units_KF = net.memory.units_KF
    if net.settings.unit_rates and net.settings.units > 7:
        units_KF = units_KF * (7 / net.settings.units) ** 0.5
    gram_KK = units_KF @ units_KF.T - torch.eye(len(units_KF), dtype=units_KF.dtype)
    l1 = [out["attention_T"].abs() for out in outs]
    return {
        "classification": torch.stack(cross_entropies).mean(),
        "diversity": gram_KK.square().sum().sqrt(),
        "homogeneity": torch.stack([out["shares_K"] for out in outs]).mean(0).square().sum().sqrt(),
        "sparsity": torch.stack([a.mean() if sparsity_reduction == "mean" else a.sum() for a in l1]).mean(),
    }
