"""Recipes: refused settings with their messages, overrides, and the round trip through YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import unveil
from unveil.core import timestep_sampling
from unveil.core.process import betas
from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError
from unveil.model.config import (
    AutoencoderRecipe,
    CaptionerRecipe,
    ClassifierRecipe,
    ModelConfig,
    Recipe,
    SequenceRecipe,
    dump,
    load_recipe,
    parse_recipe,
    read_yaml,
    recipe_names,
    validate,
)
from unveil.model.config.model import SavedSection

# Parameters of the published networks: Ho et al. 2020, appendix B; the released Improved DDPM checkpoints.
PUBLISHED = {
    "ddpm-cifar10": 35_746_307,
    "ddpm-256": 113_673_219,
    "iddpm-cifar10": 52_546_438,
    "iddpm-imagenet64": 121_063_942,
    # first_stage_models/kl-f8 and vq-f4 of github.com/CompVis/latent-diffusion
    "ae-kl-f8": 83_653_863,
    "vq-f4": 55_322_782,
    # the U-Net of cin256-v2, without its table of classes
    "ldm-imagenet256": 400_920_579,
}


def fault(*overrides: str, recipe: str = "ddpm-digits") -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


# ---------------------------------------------------------------------- the bundled recipes


@pytest.mark.parametrize("small", [False, True], ids=["full", "small"])
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_survives_the_round_trip_through_yaml(name, small):
    recipe = load_recipe(name, small=small)
    assert recipe.name == name
    assert recipe.reference
    assert recipe.claim
    assert recipe.command.startswith(f"unveil train {name}")
    assert parse_recipe(read_yaml(dump(recipe), name), name) == recipe


@pytest.mark.parametrize("small", [False, True], ids=["full", "small"])
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_on_the_meta_device(name, small):
    recipe = load_recipe(name, small=small)
    if isinstance(recipe, ClassifierRecipe):
        recipe.network.build()
        return
    if isinstance(recipe, SequenceRecipe):
        recipe.network.build({"source": 40, "target": 40})
        return
    if isinstance(recipe, CaptionerRecipe):
        recipe.network.build({"vocab_size": 40})
        return
    with torch.device("meta"):
        if isinstance(recipe, Recipe) and isinstance(
            recipe.autoencoder, SavedSection
        ):  # which another recipe trains first
            model = recipe.build_network()
        else:
            model = recipe.build() if isinstance(recipe, AutoencoderRecipe) else unveil.build(recipe.model)
    assert all(p.is_meta for p in model.parameters())
    if name in PUBLISHED and not small:
        assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", recipe_names())
def test_small_is_smaller(name):
    whole, small = load_recipe(name), load_recipe(name, small=True)
    kinds = Recipe | AutoencoderRecipe | CaptionerRecipe
    if isinstance(whole, kinds) and isinstance(small, kinds):
        assert small.train.steps * small.train.batch_size < whole.train.steps * whole.train.batch_size
        assert small.train.steps <= 100


def test_a_measured_score_is_never_left_in_the_recipe_of_another_setting():
    for name in recipe_names():
        expected = load_recipe(name).expected
        assert not (expected.scores and not expected.time), "a score without the time it took"


def test_the_model_section_of_a_recipe_is_complete():
    recipe = load_recipe("iddpm-fashion")
    assert isinstance(recipe, Recipe)
    again = validate(ModelConfig, read_yaml(dump(recipe.model), "model.yaml"), "model.yaml")
    assert again == recipe.model
    assert again.learns_variance


# ---------------------------------------------------------------------- overrides


def test_overrides_reach_maps_lists_and_whole_sections():
    recipe = load_recipe(
        "ddpm-digits",
        [
            "train.steps=100",
            "train.lr=2e-3",
            "condition.0.drop_prob=0.2",
            "process={kind: cosine-vp}",
            "sample.guidance.scale=2",
        ],
    )
    assert isinstance(recipe, Recipe)
    assert (recipe.train.steps, recipe.train.lr) == (100, 2e-3)
    assert recipe.condition[0].drop_prob == 0.2
    assert recipe.process.kind == "cosine-vp"
    assert recipe.sample.guidance.scale == 2


def test_overrides_come_after_small():
    recipe = load_recipe("ddpm-digits", ["train.steps=7", "train.warmup=0"], small=True)
    assert isinstance(recipe, Recipe)
    assert recipe.train.steps == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "an override is written key=value"),
        ("=3", "an override is written key=value"),
        ("train.lr.peak=1", r"train.lr is the value 0.002 and has no key 'peak'; set train.lr itself"),
        ("condition.4.drop_prob=0.1", "condition is a list of 1; its places are 0 to 0"),
        ("train.steps=[1", "the value of train.steps, line 1"),
    ],
)
def test_overrides_of_unknown_keys_are_refused(override, message):
    import re

    assert re.search(message, fault(override))


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stpes=3", "train.stpes: unknown key; nearest: 'steps'; allowed: batch_size, batching, tokens, steps"),
        ("trian={}", "trian: unknown key; nearest: 'train'"),
        ("network.chanels=3", "network.chanels: unknown key; nearest: 'stem_channels'"),
        ("condition.0.clases=3", "condition.0.clases: unknown key; nearest: 'num_classes'"),
        ("train.steps=-3", "train.steps = -3: must be greater than or equal to 1"),
        ("train.steps=many", "train.steps = 'many': must be a valid integer"),
        ("train.steps=null", "train.steps = None: must be a valid integer"),
        ("train.lr=.nan", "train.lr = nan: must be a finite number"),
        ("train.lr=.inf", "train.lr = inf: must be a finite number"),
        ("train.ema_decay=1.0", "train.ema_decay = 1.0: must be less than 1"),
        (
            "train.precision=fp16",
            "train.precision = 'fp16': must be one of auto, float32, bf16, 16-mixed; nearest: 'bf16'",
        ),
        ("train.grad_accum_steps=3", "batch_size = 128 cannot be split into grad_accum_steps = 3 equal parts"),
        ("network.kind=unett", "network.kind = 'unett': must be one of unet"),
        (
            "data.kind=digit",
            "data.kind = 'digit': must be one of annotated-folder, digits, fashion, fashion-style, folder, latents, "
            "playground, scenes, video-folder; "
            "nearest: 'digits'",
        ),
        (
            "data={size: 8}",
            "data = {'size': 8}: needs a map with a kind; allowed: annotated-folder, digits, fashion, ",
        ),
        (
            "data=3",
            "data = 3: needs a map with a kind; allowed: annotated-folder, digits, fashion, ",
        ),
        ("network=null", "network = None: needs a map with a kind; allowed: unet"),
        ("process.beta_schedule=cosin", "beta_schedule = 'cosin': known are linear, linear-scaled, cosine"),
        ("process={kind: discrete-vp, betas: [0.1, 2.0]}", "betas[1] = 2.0: must lie inside (0, 1)"),
        ("network.attention=[3]", "network: attention 3: must be a rate of downsampling that a level has: 1, 2"),
        ("prediction=epsilon", "prediction = 'epsilon': must be one of x0, eps, v, score, flow, posterior-mean"),
        ("condition.0.names=[zero]", "names: 1 given for 10 classes"),
        ("condition.0.key=pixels", "'pixels' is what the model makes, so it cannot be given"),
        (
            "objective.kind=hybrid",
            "teaches a variance, but variance = 'fixed-small' is fixed; set variance = learned-range",
        ),
        ("shape=[]", "shape = []: must have at least 1 item"),
        ("shape=[1, 0, 8]", "shape.1 = 0: must be greater than or equal to 1"),
        ("name=a/b", "name = 'a/b'"),
        (
            "kind=classifer",
            "kind = 'classifer': must be one of diffusion, classifier, sequence, autoencoder, captioner; nearest: "
            "'classifier'",
        ),
        ("sample.sampler=dim", "sample.sampler: sampler 'dim': no such sampler"),
    ],
)
def test_each_fault_names_key_value_and_remedy(override, message):
    assert message in fault(override)


def test_all_faults_are_reported_at_once():
    message = fault("train.steps=0", "train.lr=-1")
    assert "train.steps = 0" in message
    assert "train.lr = -1" in message
    assert message.count("ddpm-digits: ") == 2


# ---------------------------------------------------------------------- processes, times and weights

PROCESSES = {
    "discrete-vp": "{kind: discrete-vp, betas: cosine, steps: 50}",
    "zero-snr": "{kind: discrete-vp, last: zero-snr}",
    "linear-vp": "{kind: linear-vp, beta_max: 15}",
    "cosine-vp": "{kind: cosine-vp}",
    "sub-vp": "{kind: sub-vp}",
    "ve": "{kind: ve, sigma_max: 20}",
    "discrete-ve": "{kind: discrete-ve, levels: 20}",
    "edm": "{kind: edm}",
    "rectified-flow": "{kind: rectified-flow}",
    "shifted": "{kind: shifted, shift: 3, process: {kind: rectified-flow}}",
}
LITTLE = ("network.channel_mult=[1]", "network.attention=[]", "prediction=v")


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_every_process_trains_and_samples(process):
    recipe = load_recipe("ddpm-digits", [f"process={process}", *LITTLE])
    assert isinstance(recipe, Recipe)
    assert parse_recipe(read_yaml(dump(recipe), "again"), "again").process == recipe.process
    model = unveil.build(recipe.model)
    condition, _ = model.encode({"label": [0] * 8})
    objective = recipe.objective.build(recipe, model.process, 8)
    images = torch.rand(8, *recipe.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    loss = objective(model.denoiser, images, condition, SampleRNG(0, range(8)), 0)
    loss.value.backward()
    assert loss.value.isfinite()
    assert model.generate(count=2, steps=3, cond={"label": 1}).isfinite().all()


def test_the_cosine_table_of_a_recipe_has_its_offset_and_largest_beta():
    recipe = load_recipe(
        "ddpm-digits",
        ["process={kind: discrete-vp, beta_schedule: cosine, timesteps: 50, cosine_offset: 0.05, largest_beta: 0.5}"],
    )
    assert torch.equal(recipe.model.process.build().betas, betas("cosine", 50, offset=0.05, largest=0.5))
    assert "cosine_offset = 0" in fault("process={kind: discrete-vp, cosine_offset: 0}")


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ("{kind: simple, time: log-normal, weight: edm}", timestep_sampling.LogNormal),
        ("{kind: simple, time: {kind: logit-normal, location: 0.5}, weight: {kind: sigmoid, bias: -1}}", None),
        ("{kind: simple, time: {kind: stratified, of: uniform-log-snr}, weight: {kind: p2, gamma: 0.5}}", None),
        ("{kind: denoising-score-matching, weight: likelihood, time: likelihood}", timestep_sampling.Importance),
        ("{kind: sliced-score-matching, projections: 2, square: projected}", timestep_sampling.Uniform),
    ],
)
def test_objectives_times_and_weights_are_settings(settings, kind):
    recipe = load_recipe("ddpm-digits", ["process={kind: linear-vp}", f"objective={settings}", *LITTLE])
    assert isinstance(recipe, Recipe)
    assert parse_recipe(read_yaml(dump(recipe), "again"), "again").objective == recipe.objective
    model = unveil.build(recipe.model)
    objective = recipe.objective.build(recipe, model.process, 4)
    assert kind is None or isinstance(objective.time, kind)
    condition, _ = model.encode({"label": [0] * 4})
    loss = objective(model.denoiser, torch.zeros(4, *recipe.shape), condition, SampleRNG(0, range(4)), 0)
    loss.value.backward()
    assert loss.value.isfinite()


def test_a_section_of_defaults_is_written_as_its_name():
    plain = load_recipe("ddpm-digits", ["objective.weight=min-snr"])
    assert "weight: min-snr, timestep_sampling: uniform" in dump(plain)
    assert load_recipe("ddpm-digits", ["objective.weight={kind: min-snr, gamma: 5}"]) == plain
    assert "gamma: 3.0" in dump(load_recipe("ddpm-digits", ["objective.weight={kind: min-snr, gamma: 3}"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("process={kind: ve, sigma_min: 3, sigma_max: 1}", "process: sigma_min = 3.0, sigma_max = 1.0: must rise"),
        ("process={kind: discrete-ve, levels: 1}", "process: levels = 1: a schedule needs at least 2"),
        ("process={kind: shifted, shift: 0, process: {kind: ve}}", "process.shift = 0: must be greater than 0"),
        (
            "process={kind: shifted, shift: 2, process: {kind: shifted}}",
            "process.process.kind = 'shifted': must be one",
        ),
        ("process={kind: rectified-flo}", "nearest: 'rectified-flow'"),
        ("process.last=zero", "process.last = 'zero': must be one of published, zero-snr; nearest: 'zero-snr'"),
        ("objective.weight=min-snrr", "objective.weight.kind = 'min-snrr': must be one of none, snr, truncated-snr"),
        ("objective.weight={kind: edm, sigma: 1}", "objective.weight.sigma: unknown key; nearest: 'sigma_data'"),
        (
            "objective.timestep_sampling=lognormal",
            "objective.timestep_sampling.kind = 'lognormal': must be one of uniform, second-moment",
        ),
        (
            "objective.timestep_sampling={kind: log-normal, scale: 0}",
            "objective.timestep_sampling.scale = 0: must be greater than 0",
        ),
        (
            "objective.timestep_sampling={kind: uniform-log-snr, low: 2, high: 1}",
            "objective.timestep_sampling: low = 2.0, high = 1.0: must rise",
        ),
    ],
)
def test_faults_of_processes_times_and_weights(override, message):
    assert message in fault(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "objective.timestep_sampling={kind: stratified, of: second-moment}",
            "objective.timestep_sampling.of.kind = 'second-moment': must be one",
        ),
        (
            "objective={kind: sliced-score-matching, time: second-moment}",
            "objective.timestep_sampling = second-moment: learns from",
        ),
    ],
)
def test_loss_aware_sampling_is_refused_if_it_would_stay_uniform(override, message):
    assert message in fault(override)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("ldm-layout", "train.random_flip=true", "train.random_flip: the boxes of condition.kind = layout"),
        ("dit-s-2-imagenet256", "train.random_flip=true", "train.random_flip: mirrored latents"),
        (
            "ae-fashion",
            "train.batching=buckets",
            "train.batching = 'buckets': an autoencoder's batches are of one size",
        ),
    ],
)
def test_settings_that_would_train_something_else_are_refused(name, override, message):
    load_recipe(name)
    with pytest.raises(RecipeError, match=message):
        load_recipe(name, [override])


def test_second_moments_need_a_table():
    message = fault("process={kind: cosine-vp}", "objective.timestep_sampling=second-moment")
    assert "needs a table of betas; use process kind discrete-vp" in message


def test_a_config_cannot_be_changed():
    recipe = load_recipe("ddpm-digits")
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"


# ---------------------------------------------------------------------- files


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(
        RecipeError, match="'ddpm-digit': no such recipe or file; nearest: 'ddpm-digits'; `unveil recipes list` lists"
    ):
        load_recipe("ddpm-digit")


LAUGHS = "a0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no map of keys"),
        ("- 1\n- 2", "holds no map of keys"),
        ("a: [1", "line 1, column 6: not plain YAML"),
        ("a: !!python/object/apply:os.system ['touch ran']", "line 1, column 4: not plain YAML"),
        ("a: !!python/name:os.system", "not plain YAML"),
        (LAUGHS, "more than 20 aliases"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper than 40 levels"),
        ("[" * 100_000, "nested deeper than 40 levels"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: not plain YAML (the key 'a' is given twice)"),
        ("a: " + "x" * 300_000, "a recipe has at most"),
        ("a: &a [*a]\nname: x", "unknown key"),
        ("a: 2020-13-45", "not plain YAML"),
    ],
)
def test_files_that_are_not_recipes_are_refused(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given.yaml"], "something was run"


def test_binary_files_are_refused_as_recipes(tmp_path):
    path = tmp_path / "given.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="not a text file"):
        load_recipe(path)


def test_a_file_takes_its_name_from_itself_and_may_be_a_runs_folder(tmp_path):
    recipe = load_recipe("ddpm-digits")
    text = dump(recipe).replace("name: ddpm-digits\n", "", 1)
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path).model_dump(exclude={"name"}) == recipe.model_dump(exclude={"name"})
    mine = Path(tmp_path / "mine.yaml")
    mine.write_text(text)
    assert load_recipe(mine).name == "mine"
