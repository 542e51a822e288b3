"""The work of `tasks.inspect.InspectSchedule`: a noise schedule, timestep by timestep, as a table and a plot."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unveil import data
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.likelihood import bound
from unveil.core.prediction import fixed_small, is_learned
from unveil.core.process import DiscreteVP, Process
from unveil.core.rng import SampleRNG
from unveil.core.transition import Chain, chain_of
from unveil.errors import RecipeError
from unveil.evaluate.likelihood import bits_per_dim
from unveil.generation.model_loading import resolve_device
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.model import model_folder
from unveil.model.config import Recipe, load_recipe, recipe_names
from unveil.tasks.fields import CatalogName
from unveil.tasks.recipe_kind import require_diffusion_recipe
from unveil.tasks.task import TaskContext, TaskResult
from unveil.types import NoiseLevel

if TYPE_CHECKING:
    from unveil.tasks.inspect import InspectSchedule

DEVIATION = 0.5  # standard deviation of the Gaussian data whose exact bound is plotted without a model
STEPS = 1000  # of the chain of a process of continuous time


@dataclass(frozen=True)
class ScheduleCurves:
    """Values of each step of a schedule, from the noisiest to the data.

    Attributes:
        t: Time of the start of the step.
        alpha_bar: alpha^2 at the start of the step.
        beta: beta of the step.
        ratio: beta-tilde / beta.
        bound: Term of the variational bound in bits/dim.
        prior: Prior term of the bound in bits/dim.
        of: What the bound is measured on.
    """

    t: list[float]
    alpha_bar: list[float]
    beta: list[float]
    ratio: list[float]
    bound: list[float]
    prior: float
    of: str

    @property
    def total(self) -> float:
        """The whole bound in bits/dim."""
        return self.prior + sum(self.bound)


def plot_schedule(task: InspectSchedule, context: TaskContext) -> TaskResult:
    """Plot the schedule of a recipe or of a model, and return its table.

    Raises:
        RecipeError: The output is not a .png file, or the recipe is not one of a diffusion model.
        OutputError: The output exists.
    """
    out = context.output.path
    if out.suffix.lower() != ".png":
        raise RecipeError(f"--out {out}: must end in .png")
    refuse_overwrite(out, context.output.force)
    name = context.resolver.path(task.source, CatalogName("recipe_or_model"))
    curves = _of_recipe(task, name) if _is_recipe(name) else _of_model(task, name, context)
    write_atomically(out, draw(curves, task.source))
    facts: dict[str, Any] = {**vars(curves), "bits_per_dim": curves.total, "image": str(out)}
    return TaskResult(facts, f"{table(curves, task.rows)}\n{out}")


def table(curves: ScheduleCurves, rows: int) -> str:
    """Return a table of evenly spaced steps, one line each."""
    steps = len(curves.t)
    chosen = sorted({round(place * (steps - 1) / (rows - 1)) for place in range(rows)})
    lines = [f"{'t':>8} {'alpha-bar':>12} {'beta':>12} {'ratio':>9} {'bits/dim':>12}"]
    columns = list(zip(curves.t, curves.alpha_bar, curves.beta, curves.ratio, curves.bound, strict=True))
    lines += ["{:8.4f} {:12.4e} {:12.4e} {:9.5f} {:12.4e}".format(*columns[k]) for k in chosen]
    lines.append(f"{steps} steps; bound of {curves.of}: {curves.total:.4f} bits/dim, of which prior {curves.prior:.2e}")
    return "\n".join(lines)


def draw(curves: ScheduleCurves, title: str) -> bytes:
    """Return a PNG of three curves over t."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    left.plot(curves.t, curves.alpha_bar, color="black")
    left.set(title="alpha-bar", xlabel="t (0 data, 1 noise)")
    inner = [k for k, ratio in enumerate(curves.ratio) if ratio > 0]
    middle.plot([curves.t[k] for k in inner], [curves.ratio[k] for k in inner], color="black")
    middle.set(title="beta-tilde / beta", xlabel="t", ylim=(0, 1.05))
    right.plot(curves.t, curves.bound, color="black")
    right.set(title=f"bound, bits/dim: {curves.total:.3f} in all\n{curves.of}", xlabel="t", yscale="log")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def curves_of(chain: Chain, terms: Tensor, prior: Tensor, of: str) -> ScheduleCurves:
    """Return the curves of a chain, with the terms (B, T) and the prior (B,) of a bound in bits/dim."""
    moves = list(chain)
    return ScheduleCurves(
        t=[float(move.t.t) for move in moves],
        alpha_bar=[float(move.t.alpha) ** 2 for move in moves],
        beta=[float(move.beta) for move in moves],
        ratio=[float(move.var) / float(move.beta) for move in moves],
        bound=terms.double().mean(0).tolist(),
        prior=float(prior.double().mean()),
        of=of,
    )


def gaussian(deviation: float) -> DenoiseFn:
    """Return the exact denoiser of Gaussian data of mean 0: E[x0 | x] = alpha s^2 x / (alpha^2 s^2 + sigma^2)."""

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        alpha, sigma = float(level.alpha), float(level.sigma)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return Estimate.of_x0(gain * x, x, level)

    return step


def _is_recipe(name: str) -> bool:
    return name in recipe_names() or name.endswith((".yaml", ".yml")) or not Path(name).exists()


def _chain(process: Process) -> Chain:
    if isinstance(process, DiscreteVP):
        return chain_of(process)
    return Chain(schedules.uniform(process, STEPS))


def _of_recipe(task: InspectSchedule, name: str) -> ScheduleCurves:
    recipe = _diffusion(name, task)
    rule = recipe.build_variance()
    # whole values of 256, as pixels have them
    streams = SampleRNG(0, range(task.num_images))
    x0 = (((DEVIATION * streams.normal((1024,), 0).double()).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    chain = _chain(recipe.process.build())
    noise = streams.bind(x0.shape[1:])
    exact = bound(gaussian(DEVIATION), chain, x0, fixed_small if is_learned(rule) else rule, noise=noise)
    of = f"the best denoiser of Gaussian data, deviation {DEVIATION}"
    return curves_of(chain, exact.terms, exact.prior, of)


def _of_model(task: InspectSchedule, name: str, context: TaskContext) -> ScheduleCurves:
    run = Path(name)
    run = run.parent.parent if run.parent.name == "checkpoints" else run
    if not (run / "recipe.yaml").is_file():
        raise RecipeError(
            f"{task.source}: has no recipe.yaml, which names the data that the bound is measured on; give a run"
        )
    recipe = _diffusion(str(run), task)
    model = model_folder.load_model(name).to(resolve_device(context.device))
    held_out = data.open(recipe.data.build(), "held-out")
    chain = _chain(model.process)
    with context.console.progress("network call", len(chain)) as progress:
        bits = bits_per_dim(model, held_out, count=task.num_images, steps=len(chain), on_progress=progress.reach)
    return curves_of(chain, bits.terms, bits.prior, f"{task.source} on {len(bits.prior)} held-out images")


def _diffusion(name: str, task: InspectSchedule) -> Recipe:
    return require_diffusion_recipe(load_recipe(name, task.settings), "unveil inspect schedule")
