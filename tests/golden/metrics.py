"""Recorded cases of the metrics: the FID Inception, and FID, KID, Inception score, precision and recall."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tests.golden.case import Case, Comparison
from unveil.evaluate import frechet, metrics
from unveil.evaluate.inception import FidInception, load_weights


def inception(case: Case) -> Iterator[Comparison]:
    """Names and shapes of the state dict, then every recorded output of every input."""
    network = FidInception().eval()
    own = {key: list(value.shape) for key, value in network.state_dict().items()}
    yield case.compare("state_dict_keys", int(own == case.meta["keys"]), want=1)
    weights = {key: _drawn(case.meta["salt"] + key, key, shape) for key, shape in case.meta["keys"].items()}
    load_weights(network, weights, case.name)
    inputs = sorted(key.removeprefix("input.") for key in case.io if key.startswith("input."))
    for number in inputs:
        with torch.inference_mode():
            found = network(case.io[f"input.{number}"])
        for key in case.io:
            if key.startswith(f"output.{number}."):
                yield case.compare(key, found[key.removeprefix(f"output.{number}.")])


def scores(case: Case) -> Iterator[Comparison]:
    """Every number of `outputs` under the case's settings."""
    one, two, logits = (case.io[f"input.{name}"] for name in ("features_1", "features_2", "logits"))
    chosen = case.meta["settings"]
    seed, degree, offset = chosen["kid_seed"], chosen["kid_degree"], chosen["kid_coef0"]
    subsets = metrics.kid_of_subsets(
        one, two, subsets=chosen["kid_subsets"], size=chosen["kid_subset_size"], seed=seed, degree=degree,
        offset=offset,
    )  # fmt: skip
    if chosen["isc_shuffle"]:  # the published program draws the order from its one seed
        logits = logits[np.random.RandomState(seed).permutation(len(logits))]
    score = metrics.inception_score(logits, splits=chosen["isc_splits"])
    reached = metrics.precision_recall(one, two, neighbours=chosen["prc_neighborhood"])
    least = min(len(one), len(two))
    found = {
        "fid": frechet.fid(one, two),
        "isc_mean": score.mean,
        "isc_std": score.std,
        "kid_full": metrics.kid(one[:least], two[:least], degree=degree, offset=offset),
        "kid_mean": subsets.mean,
        "kid_std": subsets.std,
        "precision": reached.precision,
        "recall": reached.recall,
    }
    for name, want in case.meta["outputs"].items():
        yield case.compare(name, found[name], want=want)


def _drawn(salted: str, key: str, shape: list[int]) -> Tensor:
    """The weights are not stored: `weights_rule` of the case makes them from the names."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(salted.encode())))
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_var"):
        return 1 + 0.2 * z.abs()
    if key.endswith("bn.weight"):
        return 1 + 0.1 * z
    if key.endswith(("bias", "running_mean")):
        return 0.1 * z
    return z * math.sqrt(2 / math.prod(shape[1:]))


KINDS = {"torch-fidelity/inception": inception, "torch-fidelity/metrics": scores}
