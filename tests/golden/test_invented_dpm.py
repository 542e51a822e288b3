"""DPM-Solver and UniPC under settings that no record has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.invented import Analytic, Record, check, normal
from tests.golden.invented_dpm import Solver, UniPc, Vp

Run = dict[str, dict[str, Any]]
Schedule = tuple[dict[str, Any], dict[str, Any]]
LINEAR = {"kind": "linear", "t_T": 1.0}, {"continuous_beta_0": 0.2, "continuous_beta_1": 14.0}
STRONG = {"kind": "linear", "t_T": 1.0}, {"continuous_beta_0": 0.05, "continuous_beta_1": 25.0}
SHORT = {"kind": "discrete", "t_T": 1.0}, {"ls": 0.002, "le": 0.09, "T": 90}
NOISY = {"kind": "discrete", "t_T": 1.0}, {"ls": 0.0009, "le": 0.045, "T": 1000}  # DPM-Solver cuts its last levels
FULLY = LINEAR, SHORT  # every setting of their runs is changed; of the others, those of the schedule
THRESHOLD = {"correcting_x0_fn": "dynamic_thresholding", "dynamic_thresholding_ratio": 0.8, "thresholding_max_val": 0.7}

INIT = {
    "correcting_x0_fn": None, "correcting_xt_fn": None, "thresholding_max_val": 1.0,
    "dynamic_thresholding_ratio": 0.995,
}  # fmt: skip
SAMPLE = {
    "steps": 20, "t_start": None, "t_end": None, "order": 2, "skip_type": "time_uniform", "method": "multistep",
    "lower_order_final": True, "denoise_to_zero": False, "atol": 0.0078, "rtol": 0.05, "return_intermediate": False,
}  # fmt: skip


def record(solver: type[Solver], schedule: Schedule, runs: dict[str, Run]) -> Record:
    """The case of some runs of one schedule."""
    settings: dict[str, Any] = {**schedule[0], "kwargs": schedule[1]}
    vp = Vp(settings, cut=solver is Solver)
    settings["total_N"] = vp.length
    exact, start = Analytic.of(1, 1, 2, 3), normal(2, 2, 1, 2, 3)
    io: dict[str, Tensor] = exact.io | vp.tensors() | {"x_T": start}
    for name, run in runs.items():
        used = solver(vp, exact, run["init"], run["sample"])
        out = used.run(start)
        times = torch.tensor(used.times, dtype=torch.float64)
        io |= {f"{name}.f64.out": out, f"{name}.out": out.float(), f"{name}.model_t": times}
        if used.states:
            second = run["sample"].get("method", "multistep").startswith("single")
            io[f"{name}.f64.x1"] = used.states[:2][-1] if second else used.states[0]
    repository = "dpm-solver" if solver is Solver else "UniPC"
    kind = f"{repository}/{'vp_linear' if settings['kind'] == 'linear' else 'discrete'}"
    return Record({"kind": kind, "schedule": settings, "solver_runs": runs}, io)


def of_schedule(schedule: Schedule) -> dict[tuple[str | int, ...], Any]:
    """Changes of a schedule."""
    scales = {("schedule", "kwargs", name): value * 1.2 for name, value in schedule[1].items() if name != "T"}
    return {("schedule", "total_N"): 70, **scales}


def of_x0(init: dict[str, Any] | None = None, **sample: Any) -> Run:
    return {"init": {"algorithm_type": "dpmsolver++"} | (init or {}), "sample": sample}


def of_eps(init: dict[str, Any] | None = None, **sample: Any) -> Run:
    return {"init": {"algorithm_type": "dpmsolver"} | (init or {}), "sample": sample}


DPM = {
    "defaults": {"init": {}, "sample": {}},
    "spelled-out": of_x0(INIT, **SAMPLE, solver_type="dpmsolver"),
    "parts": of_x0(steps=7, order=3, skip_type="time_quadratic", t_start=0.9, t_end=0.02),
    "bent": of_eps(steps=6, order=2, skip_type="logSNR", solver_type="taylor", lower_order_final=False),
    "third": of_eps(steps=11, order=3, skip_type="time_quadratic", lower_order_final=True),
    "first": of_x0(steps=4, order=1, method="singlestep", skip_type="logSNR"),
    "single": of_x0(steps=7, order=2, method="singlestep", skip_type="logSNR", t_end=0.03),
    "single-bent": of_eps(steps=9, order=3, method="singlestep", skip_type="time_quadratic", solver_type="taylor"),
    "single-rest": of_x0(steps=8, order=3, method="singlestep", solver_type="taylor", denoise_to_zero=True),
    "fixed": of_x0(steps=7, order=3, method="singlestep_fixed", skip_type="time_quadratic"),
    "adaptive": of_x0(order=3, method="adaptive", atol=0.02, rtol=0.1),
    "adaptive-bent": of_eps(order=3, method="adaptive", solver_type="taylor", rtol=0.2, t_start=0.8, t_end=0.05),
    "adaptive-to-zero": of_eps(order=2, method="adaptive", atol=0.05, denoise_to_zero=True),
    "thresholds": of_x0(THRESHOLD, steps=5, order=3, denoise_to_zero=True),
    "thresholds-the-end": of_eps(THRESHOLD, steps=5, order=2, denoise_to_zero=True),
}  # fmt: skip


@pytest.mark.parametrize(
    "schedule", [LINEAR, STRONG, SHORT, NOISY], ids=["linear", "strong", "short-table", "noisy-table"]
)
def test_dpm_solver(tmp_path, schedule):
    runs = ("solver_runs",)
    changes: dict[tuple[str | int, ...], Any] = {
        (*runs, "parts", "sample", "t_start"): 0.8,
        (*runs, "parts", "sample", "skip_type"): "time_uniform", (*runs, "bent", "sample", "solver_type"): "dpmsolver",
        (*runs, "bent", "sample", "lower_order_final"): True, (*runs, "adaptive", "sample", "atol"): 0.4,
        (*runs, "thresholds-the-end", "init", "dynamic_thresholding_ratio"): 0.5,
        (*runs, "single", "sample", "strange"): 1,
    }  # fmt: skip
    check(tmp_path, record(Solver, schedule, DPM), of_schedule(schedule) | (changes if schedule in FULLY else {}))


def uni_x0(init: dict[str, Any] | None = None, **sample: Any) -> Run:
    return {"init": {"algorithm_type": "data_prediction"} | (init or {}), "sample": sample}


def uni_eps(init: dict[str, Any] | None = None, **sample: Any) -> Run:
    return {"init": {"algorithm_type": "noise_prediction"} | (init or {}), "sample": sample}


UNIPC = {
    "defaults": {"init": {}, "sample": {}},
    "spelled-out": uni_x0(INIT | {"variant": "bh1"}, **SAMPLE),
    "b2": uni_eps({"variant": "bh2"}, steps=7, order=3, skip_type="time_quadratic", t_start=0.9, t_end=0.02),
    "b1": uni_x0({"variant": "bh1"}, steps=6, order=2, skip_type="logSNR", lower_order_final=False),
    "varying": uni_x0({"variant": "vary_coeff"}, steps=8, order=3, skip_type="time_quadratic", denoise_to_zero=True),
    "varying-eps": uni_eps({"variant": "vary_coeff"}, steps=5, order=2, lower_order_final=False),
    "fourth": uni_eps({"variant": "bh1"}, steps=9, order=4, skip_type="logSNR"),
    "fifth": uni_x0({"variant": "bh2"}, steps=11, order=5),
    "as-many-as-steps": uni_x0({"variant": "bh2"}, steps=4, order=4),
    "thresholds": uni_x0(THRESHOLD | {"variant": "bh2"}, steps=5, order=3, denoise_to_zero=True),
    "thresholds-the-end": uni_eps(THRESHOLD, steps=5, order=2, denoise_to_zero=True),
}


@pytest.mark.parametrize(
    "schedule", [LINEAR, STRONG, SHORT, NOISY], ids=["linear", "strong", "short-table", "noisy-table"]
)
def test_unipc(tmp_path, schedule):
    runs = ("solver_runs",)
    changes: dict[tuple[str | int, ...], Any] = {
        (*runs, "b2", "sample", "t_start"): 0.8, (*runs, "b2", "init", "variant"): "bh1",
        (*runs, "b2", "sample", "skip_type"): "time_uniform", (*runs, "b1", "sample", "lower_order_final"): True,
        (*runs, "varying-eps", "init", "algorithm_type"): "data_prediction", (*runs, "b1", "sample", "strange"): 1,
        (*runs, "thresholds", "init", "thresholding_max_val"): 0.9, (*runs, "fourth", "sample", "order"): 3,
    }  # fmt: skip
    check(tmp_path, record(UniPc, schedule, UNIPC), of_schedule(schedule) | (changes if schedule in FULLY else {}))
