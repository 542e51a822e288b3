"""Model: conditions, sampling and its settings; equal requests give equal samples."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

import unveil
from unveil.core import samplers
from unveil.core.denoiser import Denoiser, Estimate
from unveil.core.prediction import learned_range
from unveil.core.process import CosineVP, DiscreteVP, betas
from unveil.core.rng import START, SampleRNG
from unveil.errors import Cancelled, NonFinite, OutOfResources, RecipeError
from unveil.model import Model, build
from unveil.model.config import ModelConfig, validate
from unveil.types import Condition, NoiseLevel

PLAIN = {
    "shape": [1, 8, 8],
    "network": {"kind": "unet", "model_channels": 16, "channel_mult": [1, 2], "num_res_blocks": 1, "groups": 4},
    "process": {"kind": "discrete-vp", "beta_schedule": "cosine", "timesteps": 50},
    "condition": [{"kind": "class-label", "num_classes": 3, "names": ["boot", "coat", "sandal"], "drop_prob": 0.1}],
    "sample": {"steps": 4, "eta": 1.0},
}


def config(**changes: object) -> ModelConfig:
    return validate(ModelConfig, PLAIN | changes, "test")


def shaken(model: Model) -> Model:
    """With weights that matter: published networks start as the zero function."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    return shaken(build(config()))


# ---------------------------------------------------------------------- conditions


def test_one_value_is_broadcast_and_a_list_has_one_value_per_sample(model):
    condition, null = model.encode({"label": 1}, 3)
    assert condition is not None
    assert null is not None
    assert condition.vector is not None
    assert condition.vector.shape == (3, 64)
    named, _ = model.encode({"label": ["boot", 1, "sandal"]})
    numbered, _ = model.encode({"label": torch.tensor([0, 1, 2])})
    assert torch.equal(named.vector, numbered.vector)
    assert not torch.equal(named.vector[0], named.vector[1])


def test_an_omitted_condition_is_the_null_condition(model):
    condition, null = model.encode({}, 2)
    assert torch.equal(condition.vector, null.vector)
    again, _ = model.encode(None, 2)
    assert torch.equal(again.vector, null.vector)


def test_without_condition_dropout_a_condition_cannot_be_omitted():
    always = build(config(condition=[{"kind": "class-label", "num_classes": 3}]))
    condition, null = always.encode({"label": 0})
    assert condition is not None
    assert null is None
    with pytest.raises(RecipeError, match="label: missing, and this model was trained with it always"):
        always.encode({})
    with pytest.raises(RecipeError, match="guidance needs a model trained with drop_prob > 0; use guidance_scale 1"):
        always.generate(cond={"label": 0}, guidance_scale=2.0)


def test_two_conditions_are_combined():
    parts = [
        {"kind": "class-label", "num_classes": 3, "drop_prob": 0.1},
        {"kind": "concat", "key": "mask", "channels": 1, "drop_prob": 0.1},
    ]
    both = build(config(condition=parts))
    condition, null = both.encode({"label": [1, 2], "mask": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)})
    for found in (condition, null):
        assert found.vector.shape == (2, 64)
        assert found.concat.shape == (2, 1, 8, 8)
    assert (condition.concat == -1).all()
    assert (null.concat == 0).all()
    samples = both.generate(cond={"label": 1, "mask": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)}, count=3)
    assert samples.shape == (3, 1, 8, 8)


def test_a_model_without_conditions_takes_none():
    free = build(config(condition=[]))
    assert free.encode() == (None, None)
    with pytest.raises(RecipeError, match="condition 'label': this model takes none"):
        free.encode({"label": 1})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"lable": 1}, "condition 'lable': this model takes label; nearest: 'label'"),
        ({"label": "boots"}, "label 'boots': must be one of boot, coat, sandal; nearest: 'boot'"),
        ({"label": 3}, r"label 3: must be 0 to 2; nearest: 2 \(sandal\)"),
        ({"label": [0, 1]}, "label: 2 values for 3 samples; give one, or one for each"),
    ],
)
def test_invalid_conditions_are_refused(model, raw, message):
    with pytest.raises(RecipeError, match=message):
        model.generate(cond=raw, count=3)


# ---------------------------------------------------------------------- samples


def test_samples_do_not_depend_on_how_they_are_split(model):
    raw = {"label": [0, 1, 2, 0, 1]}
    whole = model.generate(cond=raw, count=5, seed=3)
    parts = model.generate(cond=raw, count=5, seed=3, batch=2)
    later = model.generate(cond={"label": [0, 1]}, count=2, seed=3, start_index=3)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(later, whole[3:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model.generate(cond=raw, count=5, seed=4), whole, atol=1e-2)
    assert torch.equal(model.generate(cond=raw, count=5, seed=3), whole)
    assert whole.abs().max() <= 1


def test_generate_equals_sampling_from_its_parts(model):
    condition, null = model.encode({"label": [2, 0]})
    schedule = unveil.schedules.uniform(model.process, 6)
    both = unveil.guidance.batch_cond_uncond(model.denoiser, condition, null)  # a few samples: one call for both
    step = unveil.guidance.clip_static(unveil.guidance.cfg(*both, 3.0))
    streams = SampleRNG(5, range(2))
    noise = streams.bind(model.shape)
    x = unveil.run(
        samplers.ddim(schedule, eta=0.5), step, schedule.start(streams.normal(model.shape, START)), noise=noise
    )
    given = model.generate(cond={"label": [2, 0]}, count=2, seed=5, steps=6, eta=0.5, guidance_scale=3.0)
    assert torch.equal(given, x.clamp(-1, 1))


def test_the_models_own_settings_are_the_defaults(model):
    seen: list[int] = []
    model.generate(cond={"label": 0}, on_step=lambda progress: seen.append(progress.total))
    assert seen == [4] * 4
    own = model.generate(cond={"label": 0}, seed=1)
    assert torch.equal(
        own, model.generate(cond={"label": 0}, seed=1, steps=4, eta=1.0, sampler="ddim", threshold="static")
    )
    assert not torch.allclose(own, model.generate(cond={"label": 0}, seed=1, eta=0.0), atol=1e-3)


def test_eta_one_is_the_ancestral_chain(model):
    ancestral = model.generate(cond={"label": 0}, count=2, sampler="ancestral")
    torch.testing.assert_close(model.generate(cond={"label": 0}, count=2, eta=1.0), ancestral, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["heun", "euler-time", "euler-ancestral", "dpmpp-2m"])
def test_any_sampler_runs_by_its_name_with_its_own_options(model, name):
    one = model.generate(cond={"label": 0}, sampler=name, steps=5, schedule="karras")
    assert torch.isfinite(one).all()
    assert not torch.allclose(
        model.generate(cond={"label": 0}, sampler=name, steps=9, schedule="karras"), one, atol=1e-4
    )


def test_a_samplers_option_reaches_it(model):
    given = {"cond": {"label": 0}, "sampler": "euler", "steps": 5, "schedule": "karras"}
    churned = model.generate(**given, sampling={"options": {"s_churn": 3.0, "s_tmax": 50.0}})
    assert not torch.allclose(model.generate(**given), churned, atol=1e-3)
    with pytest.raises(RecipeError, match=r"s_chern: sampler 'euler' takes no such setting; .*; nearest: 's_churn'"):
        model.generate(**given, sampling={"options": {"s_chern": 3.0}})
    with pytest.raises(RecipeError, match="eta: sampler 'heun' takes no such setting"):
        model.generate(cond={"label": 0}, sampler="heun", eta=0.5)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("dpmpp-2m-sde", {"eta": -1}, r"eta = -1.*: must be at least 0, which adds no noise"),
        ("heun", {"node": "abc"}, r"node = 'abc', of sampler 'heun': .*number"),
        ("dpm-solver-2m", {"order": 2.5}, r"order = 2.5, of sampler 'dpm-solver-2m': .*integer"),
        ("plms", {"start": 3}, "start: sampler 'plms' takes no such setting; its own are: none"),
        ("dpm2", {"power": -1}, r"power = -1.0: of the mean, must be 0 to 1"),
    ],
)
def test_a_samplers_option_has_its_type(model, sampler, options, message):
    with pytest.raises(RecipeError, match=message):
        model.generate(cond={"label": 0}, sampler=sampler, steps=3, sampling={"options": options})


def test_a_number_that_yaml_parses_as_text_is_a_number(model):
    given = {"cond": {"label": 0}, "sampler": "heun", "steps": 3}
    one, two = (model.generate(**given, sampling={"options": {"node": node}}) for node in ("5e-1", 0.5))
    assert torch.equal(one, two)


def test_a_schedule_may_be_a_list_of_timesteps(model):
    written = model.generate(cond={"label": 0}, eta=0.0, schedule=[1.0, 0.5, 0.0])
    assert torch.equal(written, model.generate(cond={"label": 0}, eta=0.0, steps=2))
    with pytest.raises(RecipeError, match=r"0.7"):
        model.generate(cond={"label": 0}, schedule=[0.5, 0.7, 0.0])


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": "apg"},
        {"guidance": "cfg-zero"},
        {"interval": [0.2, 0.6]},
        {"rescale": 0.7},
        {"schedule": "cosine"},
    ],
)
def test_every_form_of_guidance_changes_the_sample(model, settings):
    given = {"cond": {"label": 0}, "count": 2, "guidance_scale": 4.0, "threshold": "none"}
    plain = model.generate(**given)
    assert not torch.allclose(model.generate(**given, sampling=settings), plain, atol=1e-4), settings


def test_a_negative_condition_replaces_the_null_condition(model):
    away = model.generate(cond={"label": 0}, negative_cond={"label": 1}, guidance_scale=3.0, threshold="none")
    assert not torch.allclose(away, model.generate(cond={"label": 0}, guidance_scale=3.0, threshold="none"), atol=1e-3)
    itself = model.generate(cond={"label": 0}, negative_cond={"label": 0}, guidance_scale=3.0, threshold="none")
    torch.testing.assert_close(itself, model.generate(cond={"label": 0}, threshold="none"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "scale", "rows"), [(2, 3.0, [4]), (9, 3.0, [9, 9]), (2, 1.0, [2]), (2, 0.0, [2])])
def test_a_few_samples_are_guided_in_one_call_and_many_in_two(model, count, scale, rows):
    seen = []
    hook = model.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        model.generate(cond={"label": 1}, count=count, steps=3, guidance_scale=scale)
    finally:
        hook.remove()
    assert seen == rows * 3


@pytest.mark.parametrize("sampler", ["ddim", "heun", "ancestral"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_part_that_depends_on_timesteps_only_is_computed_once(sampler, scale):
    dit = {"kind": "dit", "patch": 2, "depth": 2, "hidden_size": 32, "heads": 2}
    model = shaken(build(config(network=dit, variance="learned-range")))
    network = model.denoiser.network
    batch_sizes: list[int] = []
    network.time[0].register_forward_hook(lambda _module, inputs, _result: batch_sizes.append(len(inputs[0])))
    how = {
        "cond": {"label": [0, 2, 2]},
        "count": 3,
        "sampler": sampler,
        "steps": 5,
        "guidance_scale": scale,
        "schedule": "uniform",
    }
    found = model.generate(**how)
    assert len(batch_sizes) == 1  # for all levels and classes, and none
    network.precompute = lambda indices: contextlib.nullcontext()
    torch.testing.assert_close(found, model.generate(**how), rtol=0, atol=1e-4)
    assert len(batch_sizes) > 4  # as it is without


def test_guidance_scale_0_is_unconditional(model):
    torch.testing.assert_close(
        model.generate(cond={"label": 0}, guidance_scale=0.0),
        model.generate(cond={"label": 1}, guidance_scale=0.0),
        rtol=0,
        atol=0,
    )


def test_a_shift_moves_the_mean_or_the_eps(model):
    towards = lambda x, level: 5 * torch.ones_like(x)  # noqa: E731 - a gradient towards brighter images
    for sampler in ("ancestral", "ddim"):
        plain = model.generate(cond={"label": 0}, sampler=sampler, steps=10, threshold="none")
        moved = model.generate(cond={"label": 0}, sampler=sampler, steps=10, threshold="none", cond_grad=towards)
        assert (moved - plain).mean() > 0.1, sampler


def test_another_sampler_drops_the_settings_of_the_former_one():
    own = config().sample
    assert own.eta == 1.0
    assert own.changed({"sampler": "heun"}).eta is None
    assert own.changed({"steps": 7}).eta == 1.0
    assert own.changed(own.flat()) == own


def test_a_learned_variance_is_sampled_with():
    learned = shaken(build(config(variance="learned-range", sample={"steps": 4, "sampler": "ancestral"})))
    one = learned.generate(cond={"label": 0}, seed=0)
    with torch.no_grad():
        learned.denoiser.network.leave.bias[1:] += 3.0  # the variance's own output
    assert not torch.allclose(learned.generate(cond={"label": 0}, seed=0), one, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "dim"}, "sampling: sampler: sampler 'dim': no such sampler; nearest: 'ddim'"),
        ({"threshold": "hard"}, "sampling: threshold = 'hard': must be one of static, dynamic, none"),
        ({"eta": 2.0}, "sampling: eta = 2.0: must be less than or equal to 1"),
        ({"steps": 0}, "sampling: steps = 0: must be greater than or equal to 1"),
        ({"guidance_scale": float("nan")}, "must be a finite number"),
        ({"schedule": "uniforn"}, "schedule 'uniforn': must be one of uniform, .*; nearest: 'uniform'"),
        ({"count": 0}, "count = 0: at least 1"),
    ],
)
def test_invalid_settings_are_refused(model, settings, message):
    with pytest.raises(RecipeError, match=message):
        model.generate(cond={"label": 0}, **settings)


def test_training_mode_is_left_as_it_was():
    dropping = build(config(network=PLAIN["network"] | {"dropout": 0.5}))
    shaken(dropping).train()
    one, two = (dropping.generate(cond={"label": 0}) for _ in range(2))
    assert dropping.training
    assert torch.equal(one, two), "dropout was on while sampling"


def test_a_step_callback_may_cancel(model):
    def stop(progress: object) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        model.generate(cond={"label": 0}, on_step=stop)


def test_lower_precision_is_close_and_leaves_the_weights_alone(model):
    exact = model.generate(cond={"label": [0, 1]}, count=2)
    model.precision = torch.bfloat16
    try:
        rough = model.generate(cond={"label": [0, 1]}, count=2)
    finally:
        model.precision = torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).abs().mean() < 0.05
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_model_in_lower_precision_runs_in_that_precision_only():
    drawn = {}
    for way in ("precision", "lowered"):
        one = shaken(build(config())).eval()
        if way == "lowered":
            assert one.to_inference_dtype(torch.float32) is one  # nothing happens
            one.to_inference_dtype(torch.bfloat16)
        one.precision = torch.bfloat16
        drawn[way] = one.generate(cond={"label": 1}, count=2)
        held = {type(m).__name__: m.weight.dtype for m in one.denoiser.network.modules() if hasattr(m, "weight")}
        assert held["Conv2d"] == held["Linear"] == (torch.bfloat16 if way == "lowered" else torch.float32)
        assert held["GroupNorm"] == torch.float32
    assert torch.equal(drawn["lowered"], drawn["precision"])
    assert drawn["lowered"].std() > 0
    for dtype in (torch.float32, torch.float16):
        with pytest.raises(RecipeError, match=r"converted to torch\.bfloat16; load the model again"):
            one.precision = dtype


# ---------------------------------------------------------------------- faults and devices


class Constant(nn.Module):
    """A network with a constant output."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        return self.value.expand_as(x)


class Pointwise(nn.Module):
    """A network that compiles in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, index: Tensor, condition: Condition | None) -> Tensor:
        del condition
        return torch.tanh(self.weight * x) * torch.cos(index)[:, None, None, None]


def check_compiled(model: Model) -> None:
    names, calls = list(model.state_dict()), []
    expected = model.generate(steps=3)
    network = model.denoiser.network
    network.register_forward_hook(lambda *_: calls.append(torch.compiler.is_compiling()))  # pyright: ignore
    torch.testing.assert_close(model.compile_network().generate(steps=3), expected, rtol=0, atol=1e-4)
    assert any(calls)
    assert list(model.state_dict()) == names


@pytest.mark.slow  # torch builds and compiles C++
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_compiled_network_gives_the_same_samples_under_the_same_names():
    check_compiled(Model(Denoiser(Pointwise(), DiscreteVP(betas("linear", 10))), (1, 8, 8)))


@pytest.mark.release  # minutes of a C++ compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    "network", [PLAIN["network"], {"kind": "dit", "patch": 2, "depth": 1, "hidden_size": 32, "heads": 2}]
)
def test_every_kind_of_network_can_be_compiled(network):
    check_compiled(shaken(build(config(network=network))))


def test_compiling_without_a_compiler_is_refused(monkeypatch, model):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(OutOfResources, match="C\\+\\+ compiler"):
        model.compile_network()


def test_non_finite_values_stop_with_a_remedy():
    broken = Model(Denoiser(Constant(float("nan")), CosineVP(), prediction=unveil.core.prediction.v), (2,))
    with pytest.raises(NonFinite, match=r"step 1 of 3: .* at t = 1 .*is not finite; set threshold = static"):
        broken.generate(steps=3)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "heun", "euler-ancestral", "pc-ancestral"])
def test_the_error_of_non_finite_values_names_step_and_noise_level(sampler):
    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(torch.full_like(x, float("inf") if level.t < 0.35 else 0.0), x, level)

    schedule = unveil.schedules.uniform(CosineVP(), 10)  # t = 1, 0.9, ... 0.1, 0
    streams = SampleRNG(0, range(2))
    plan = samplers.sampler_specs()[sampler].plan(schedule)
    with pytest.raises(NonFinite, match=rf"step \d+ of {plan.total}: .* at t = 0\.3 \(log"):
        unveil.run(plan, step, schedule.start(streams.normal((3,), START)), noise=streams.bind((3,)))


class HalfBlind(nn.Module):
    """A codec whose decoder overflows in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bool] = []

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        self.calls.append(torch.is_autocast_enabled(latents.device.type))
        return latents / 0 if self.calls[-1] else latents

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


def test_a_decoder_that_overflows_in_half_precision_is_repeated_once_in_float32():
    codec = HalfBlind()
    model = Model(Denoiser(Constant(0.1), CosineVP(), prediction=unveil.core.prediction.v), (2,), autoencoder=codec)
    model.precision = torch.bfloat16
    assert torch.isfinite(model.generate(steps=2)).all()
    assert codec.calls == [True, False]


def test_no_float64_is_sent_to_a_device(model, monkeypatch):
    """Devices such as Apple's have no float64: whatever is moved must be something else before."""
    sent: list[torch.dtype] = []
    real = Tensor.to

    def spy(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        target = [a for a in (*args, *kwargs.values()) if isinstance(a, str | torch.device)]
        if target:
            sent.append(self.dtype)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", spy)
    for sampler in ("ddim", "ancestral"):
        model.generate(cond={"label": [0, 1]}, count=2, sampler=sampler, guidance_scale=2.0)
    assert sent, "the spy saw nothing"
    assert torch.float64 not in sent
    torch.zeros(1, dtype=torch.float64).to("cpu")
    assert sent[-1] == torch.float64, "the spy is blind"


def test_a_variance_must_fit_the_denoiser():
    plain = Denoiser(Constant(0.0), DiscreteVP(betas("linear", 10)))
    with pytest.raises(
        RecipeError, match="the denoiser lacks variance channels, but the variance given is a learned one"
    ):
        Model(plain, (2,), variance=learned_range)


def test_a_users_network_is_a_model_in_two_lines():
    process = DiscreteVP(betas("linear", 10))
    samples = Model(Denoiser(Constant(0.2), process), (3, 2)).generate(count=4, steps=5)
    assert samples.shape == (4, 3, 2)


def test_building_is_repeatable():
    made = []
    for _ in range(2):
        torch.manual_seed(7)
        made.append(build(config()).state_dict())
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


def test_generate_accepts_the_keywords_of_other_libraries():
    model = unveil.load("ddpm-digits")
    new = model.generate(label=[3, 4], num_inference_steps=2, seed=1, guidance_scale=2, negative_cond={"label": 8})
    old = model.generate(cond={"label": [3, 4]}, count=2, steps=2, seed=1, guidance_scale=2, negative_cond={"label": 8})
    assert torch.equal(new, old)
    for keyword, right in (
        ("guidence_scale", "guidance_scale"),
        ("num_images", "count"),
        ("num_frames", "size"),
        ("cfg_scale", "guidance_scale"),
    ):
        with pytest.raises(RecipeError, match=f"{keyword}: no such keyword; nearest: '{right}'"):
            model.generate(**{keyword: 2})  # pyright: ignore
    for former, now in (("raw", "cond"), ("scale", "guidance_scale"), ("grid", "schedule"), ("clip", "threshold")):
        with pytest.raises(RecipeError, match=f"generate: {former} is the former name of {now}; write {now}"):
            model.generate(**{former: None})  # pyright: ignore
    with pytest.raises(RecipeError, match="steps and num_inference_steps are the same setting"):
        model.generate(steps=2, num_inference_steps=3)
    with pytest.raises(RecipeError, match="condition 'prompt': this model takes label"):
        model.generate("a cat")
