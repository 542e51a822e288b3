"""Names of other programs and former names: each works, or is answered with the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Cli
from unveil.checkpoints import scheduler
from unveil.cli import foreign_names as table
from unveil.cli.commands import DEFAULT_SUBCOMMANDS, all_commands, command_tree, resolve_command, resolve_options
from unveil.cli.text_forms import recipe_key, setting_name
from unveil.core import foreign_names, schedules
from unveil.core.process import LinearVP
from unveil.core.samplers import sampler_specs
from unveil.errors import RecipeError
from unveil.model.config import Recipe, SampleConfig, load_recipe

TREE = command_tree()
ALL_COMMANDS = all_commands()


def leaves(command: Any = ALL_COMMANDS, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Each command with its words."""
    inner = getattr(command, "commands", {})
    commands = {} if inner else {path: command}
    for name, subcommand in inner.items():
        commands |= leaves(subcommand, (*path, name))
    return commands


LEAVES = leaves()


def opts(command: Any) -> set[str]:
    return {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}


def exists(words: tuple[str, ...]) -> bool:
    return words[0] in TREE and (len(words) == 1 or words[1] in TREE[words[0]])


@pytest.mark.parametrize("name", table.COMMAND_ALIASES)
def test_a_foreign_command_runs_ours(name: str):
    assert exists(table.COMMAND_ALIASES[name])
    assert name not in TREE
    assert resolve_command([name, "x"], TREE, DEFAULT_SUBCOMMANDS)[0] == table.COMMAND_ALIASES[name][0]


@pytest.mark.parametrize("words", table.FORMER_COMMANDS)
def test_a_former_command_is_answered_with_todays(words: tuple[str, ...], cli: Cli):
    new = table.FORMER_COMMANDS[words]
    assert exists(new)
    assert not exists(words)
    done = cli(*words, "x.png")
    assert done.code == 2
    assert done.err.splitlines() == [f"error: `unveil {' '.join(words)}` is now `unveil {' '.join(new)}`"]


@pytest.mark.parametrize("words", table.ANSWERED_COMMANDS)
def test_what_is_no_command_is_answered(words: tuple[str, ...], cli: Cli):
    assert not exists(words)
    done = cli(*words, "x")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert table.ANSWERED_COMMANDS[words] in done.err


@pytest.mark.parametrize("name", table.OPTION_ALIASES)
def test_a_foreign_option_is_read_as_ours(name: str):
    targets = [target.partition("=") for target in table.OPTION_ALIASES[name]]
    reached = 0
    for path, command in LEAVES.items():
        arguments = {f"--{param.name}" for param in command.params if param.param_type_name == "argument"}
        if name in opts(command) or not any(target in opts(command) | arguments for target, *_ in targets):
            continue
        fixed = any(equals for _, equals, _ in targets)
        flag = any(param.is_flag for param in command.params if set(param.opts) & {target for target, *_ in targets})
        words = resolve_options([*path, name, *([] if fixed or flag else ["3"])], ALL_COMMANDS, all_commands)
        assert name not in {word.partition("=")[0] for word in words[len(path) :]}
        reached += 1
    assert reached


@pytest.mark.parametrize("name", table.FORMER_OPTIONS)
def test_a_former_option_is_answered_with_todays(name: str):
    reached = 0
    for path, command in LEAVES.items():
        new = [option for option in table.FORMER_OPTIONS[name] if option.split()[0] in opts(command)]
        if name in opts(command) or not new or (path[0], name) in table.ANSWERED_OPTIONS:
            continue
        with pytest.raises(RecipeError) as caught:
            resolve_options([*path, name, "3"], ALL_COMMANDS, all_commands)
        assert all(option in str(caught.value) for option in new)
        assert "\n" not in str(caught.value)
        reached += 1
    assert reached, "an option that no command has any more"


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_no_command_has_a_former_option(command: tuple[str, ...]):
    former = opts(LEAVES[command]) & set(table.FORMER_OPTIONS)
    assert former <= {"--first", "--scale", "--source", "--split"}, "these have another meaning there"


@pytest.mark.parametrize("key", table.ANSWERED_OPTIONS, ids=str)
def test_an_option_that_is_done_in_another_way_is_answered(key: tuple[str | None, str]):
    command, name = key
    with pytest.raises(RecipeError) as caught:
        resolve_options([command or "sample", name, "3"], ALL_COMMANDS, all_commands)
    assert str(caught.value) == f"{name}: {table.ANSWERED_OPTIONS[key]}"


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_an_unknown_option_lists_few_names(command: tuple[str, ...]):
    with pytest.raises(RecipeError) as caught:
        resolve_options([*command, "--sizze", "3"], ALL_COMMANDS, all_commands)
    assert str(caught.value).count(" --") <= 10
    assert "\n" not in str(caught.value)


def test_an_option_is_the_same_in_all_commands():
    texts: dict[str, set[str]] = {}
    for command in LEAVES.values():
        for param in command.params:
            for opt in param.opts:
                if opt in ("--guidance-scale", "--sampler", "--json", "--quiet", "--metadata", "--lora"):
                    texts.setdefault(opt, set()).add(str(param.help))
    assert all(len(help) == 1 for help in texts.values()), texts


@pytest.mark.parametrize("name", table.SETTING_ALIASES)
def test_a_foreign_setting_is_read_as_ours(name: str):
    assert setting_name(name) in SampleConfig.names()


@pytest.mark.parametrize("name", table.SETTING_OPTIONS)
def test_a_setting_that_is_an_option_is_answered_with_it(name: str):
    with pytest.raises(RecipeError, match=f"is an option, not a sampling setting: {table.SETTING_OPTIONS[name]} 3"):
        setting_name(name, "3")


@pytest.mark.parametrize("name", table.RECIPE_KEYS)
def test_a_foreign_key_of_a_recipe_is_read_as_ours(name: str):
    key = recipe_key(f"{name}=1").removesuffix("=1")
    assert recipe_key(f"{name.replace('_', '-')}=1") == f"{key}=1"
    assert key in table.RECIPE_KEYS[name]
    if key.startswith("train."):
        recipe = load_recipe("ddpm-digits")
        assert isinstance(recipe, Recipe)
        assert key.removeprefix("train.") in type(recipe.train).model_fields


@pytest.mark.parametrize("name", foreign_names.SAMPLERS)
def test_a_foreign_sampler_is_known(name: str):
    assert name not in sampler_specs()
    assert SampleConfig().changed({"sampler": name}).sampler == foreign_names.SAMPLERS[name]


@pytest.mark.parametrize("name", [*foreign_names.ABSENT_SAMPLERS, *foreign_names.COMMAND_SAMPLERS])
def test_a_sampler_that_we_do_not_have_is_answered_with_the_closest_method(name: str):
    assert foreign_names.ABSENT_SAMPLERS.get(name, "ddim") in sampler_specs()
    for spelling in (name, name.upper(), name.replace("-", "_"), f"{name}MultistepScheduler"):
        with pytest.raises(RecipeError) as refused:
            SampleConfig().changed({"sampler": spelling})
        answer = foreign_names.ABSENT_SAMPLERS.get(name) or foreign_names.COMMAND_SAMPLERS[name]
        assert answer in str(refused.value)
        assert "nearest" not in str(refused.value)


@pytest.mark.parametrize("name", foreign_names.ABSENT_SCHEDULES)
def test_a_sampler_with_a_schedule_that_we_do_not_have_is_named(name: str):
    assert name not in schedules.SCHEDULES | schedules.SCHEDULED | foreign_names.SCHEDULES
    for spelling in (f"DPM++ 2M {name}", f"dpmpp_2m_{name}"):
        with pytest.raises(RecipeError, match=f"the sampler is 'dpmpp-2m', but its schedule '{name}' does not exist"):
            SampleConfig().changed({"sampler": spelling})
    with pytest.raises(RecipeError, match="this is a schedule of other programs"):
        SampleConfig().changed({"sampler": name})


@pytest.mark.parametrize("typed", ["euler_a", "EulerAncestralDiscreteScheduler", "euler-ancestral"])
def test_a_sampler_in_place_of_a_schedule_is_answered_with_the_right_setting(typed: str):
    with pytest.raises(RecipeError, match="a sampler, not a noise schedule; use sampler=euler-ancestral"):
        SampleConfig().changed({"schedule": typed})


def test_cfg_plus_plus_is_answered_with_the_sampler_without_it():
    for typed, ours in (("euler_cfg_pp", "euler"), ("dpmpp_2s_ancestral_cfg_pp", "dpmpp-2s-ancestral")):
        with pytest.raises(RecipeError, match=f"the sampler without it is '{ours}'"):
            SampleConfig().changed({"sampler": typed})


@pytest.mark.parametrize("name", foreign_names.SCHEDULES)
def test_a_foreign_schedule_is_known(name: str):
    ours = schedules.SCHEDULES | schedules.SCHEDULED
    assert name not in ours
    assert foreign_names.schedule(name, ours) in ours
    assert foreign_names.schedule(name.replace("-", "_"), ours) == foreign_names.SCHEDULES[name]


@pytest.mark.parametrize("name", scheduler.SAMPLERS)
def test_a_scheduler_of_diffusers_by_name_is_the_sampler_that_its_settings_are_read_as(name: str):
    sampler, spacing = scheduler.SAMPLERS[name]
    assert foreign_names.sampler(name, sampler_specs()) == foreign_names.Spelled(sampler["sampler"])
    assert spacing in {spacing for spacing, *_ in scheduler.SCHEDULES}


def test_flow_matching_by_name_is_the_sampler_that_its_settings_are_read_as():
    read = scheduler.scheduler_of({"_class_name": scheduler.FLOW}, Path("scheduler_config.json"))
    assert foreign_names.sampler(scheduler.FLOW, sampler_specs()) == foreign_names.Spelled(read.sample["sampler"])


@pytest.mark.parametrize("spacing", sorted({spacing for spacing, *_ in scheduler.SCHEDULES}))
def test_a_spacing_of_diffusers_by_name_is_the_schedule_that_its_settings_are_read_as(spacing: str):
    ours = schedules.SCHEDULES | schedules.SCHEDULED
    assert foreign_names.schedule(spacing, ours) == scheduler.SCHEDULES[spacing, 0, True]


@pytest.mark.parametrize("name", ["kl-optimal", "beta", "align-your-steps", "turbo"])
def test_a_schedule_that_we_do_not_have_is_not_taken_for_another(name: str):
    with pytest.raises(RecipeError, match="must be one of"):
        schedules.get_schedule(LinearVP(), name, 4)


@pytest.mark.parametrize(
    ("typed", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras", "dpmpp-2m", "karras"),
        ("DPM++ 2M SDE", "dpmpp-2m-sde", "uniform"),
        ("DPM++ 3M SDE Exponential", "dpmpp-3m-sde", "exponential"),
        ("DPM2 a Karras", "dpm2-ancestral", "karras"),
        ("Euler a", "euler-ancestral", "uniform"),
        ("Euler a Automatic", "euler-ancestral", "uniform"),
        ("euler_a", "euler-ancestral", "uniform"),
        ("dpmpp_2m_sde", "dpmpp-2m-sde", "uniform"),
        ("sample_dpmpp_2m_sde", "dpmpp-2m-sde", "uniform"),
        ("sample_lms", "lms", "uniform"),
        ("EulerAncestralDiscreteScheduler", "euler-ancestral", "uniform"),
        ("DPMSolverMultistep", "dpmpp-2m", "uniform"),
        ("lms", "lms", "uniform"),
        ("heun", "heun", "uniform"),
        ("ddim", "ddim", "uniform"),
    ],
)
def test_a_sampler_as_other_programs_write_it(typed: str, sampler: str, schedule: str):
    changed = SampleConfig().changed({"sampler": typed})
    assert (changed.sampler, changed.flat()[setting_name("schedule")]) == (sampler, schedule)
    assert SampleConfig(sampler=typed) == changed


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["sample", "--width", "8"], "--width: give --height too, or both as --size WIDTHxHEIGHT"),
        (["sample", "ddpm-digits", "label=3"], "is an option, not a sampling setting: --label 3"),
        (["sample", "ddpm-digits", "a photo of a cat"], "this model takes no prompt, only: label"),
        (["sample", "ddpm-digits", "--prompt", "a cat"], "this model takes no prompt, only: label"),
        (["sample", "ddpm-digits", "--negative-prompt", "a cat"], "this model takes no prompt, only: label"),
        (["sample", "ddpm-digits", "--factor", "2"], "--factor is an option of `unveil upscale`"),
        (["sample", "ddpm-digits", "--controlnet", "canny.png"], "--controlnet FILE=canny.png"),
        (["upscale", "ddpm-digits", "a.png", "--scale", "2"], "use --factor for the upscaling factor, or --guidance"),
        (["train", "ddpm-digits", "--resume"], "training resumes by itself"),
        (["train", "."], "has neither images nor videos"),
        (
            ["interpolate", "a.png", "b.png"],
            "interpolate needs a model before it, `unveil interpolate MODEL a.png LAST`",
        ),
        (["variations", "missing.png"], "missing.png: no such file"),
        (["sample", "--sampler", "DPM+ 2M", "a red circle"], "no such sampler; nearest: 'dpm"),
        (["hint", "depth", "x.png"], "`unveil preprocess resize MAP --out control.png`"),
        (["img2img", "a.png"], "img2img needs a model"),
        (["sampel"], "there is no such command; nearest: sample"),
        (["a red circle"], 'use `unveil sample "a red circle"`'),
        (["sample", "stabilityai/sd", "a cat"], "`unveil get stabilityai/sd` downloads it"),
    ],
)
def test_what_newcomers_type_is_answered(cli: Cli, typed: list[str], answer: str):
    done = cli(*typed)
    assert done.code in (1, 2, 4), done.err
    assert answer in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_what_newcomers_type_works(cli: Cli, saved: Path, tmp_path: Path):
    assert cli("--version").out.startswith("unveil ")
    assert cli("-h").code == 0
    words = ["--label", 3, "--cfg-scale", 2, "--num_inference_steps", 2, "--width", 8, "--height", 8, "--seed", 1]
    done = cli("generate", "-m", saved, *words, "--output", "a.png")
    assert done.code == 0, done.err
    plain = ["--label", 3, "--guidance-scale", 2, "--steps", 2, "--size", "8x8", "--seed", 1, "guidance=2"]
    assert cli("sample", saved, *plain, "-o", "b.png").code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    done = cli("img2img", saved, "--image", "a.png", "-n2", "--label", 3, "--denoise", 0.5, "-o", "c")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "c").glob("a_*.png"))) == 2


def test_a_folder_of_images_trains_the_recipe_for_it(cli: Cli, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 90, 30)).save(tmp_path / "photos" / f"{number}.png")
    done = cli("train", "./photos", "--print-config", "--json", "train.learning_rate=0.002")
    assert done.code == 0, done.err
    assert done.json["name"] == "own-images"
    assert done.json["data"]["path"] == "photos"
    assert done.json["train"]["lr"] == 0.002
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"")
    done = cli("finetune", "videos", "--print-config", "--json")
    assert done.json["name"] == "own-videos"
    done = cli("train", "--config", "ddpm-digits", "--print-config", "--json")
    assert done.json["name"] == "ddpm-digits"
