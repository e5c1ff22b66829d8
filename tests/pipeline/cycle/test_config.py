"""The file of a cycle: what is wrong is told by key, value, bound and way out."""

import tomllib
from pathlib import Path

import pytest

from jobs.recipes import find_recipe
from pipeline.cycle.config import read_cycle
from pipeline.cycle.training import endless

EXAMPLE = Path(__file__).parents[3] / "jobs" / "production.toml"
START = 'root = "p"\nrecipe = "simclr_32px"\nimages_per_dump = 1000\n'
SOURCE = '[[sources]]\nname = "web"\nroot = "incoming"\n'


def written(folder: Path, text: str) -> Path:
    (folder / "production.toml").write_text(text)
    return folder / "production.toml"


def test_the_example_is_a_cycle_and_every_key_that_it_comments_out_stands_at_its_default(tmp_path):
    cycle = read_cycle(EXAMPLE)
    assert endless(find_recipe(cycle.recipe)(), cycle).optimizer.schedule == "constant"
    lines = [line.removeprefix("# ") if line.startswith("# ") and " = " in line else line
             for line in EXAMPLE.read_text().splitlines()]  # fmt: skip
    whole = tomllib.loads("\n".join(lines))
    assert set(type(cycle).model_fields) - set(whole) == {"epochs_per_dump"}
    assert set(type(cycle.sources[0]).model_fields) == set(whole["sources"][0])
    for name in ("replay_share", "cooldown_share", "compare_dumps", "tolerance", "after_held", "attempts",
                 "lease_seconds", "champion", "base"):  # fmt: skip
        assert whole[name] == getattr(cycle, name), name
    for name in ("quiet_minutes", "policy", "suspicious_cluster_share", "suspicious_origin_share"):
        assert whole["sources"][0][name] == getattr(cycle.sources[0], name), name


def test_paths_are_relative_to_the_file(tmp_path):
    more = 'judge_on = ["val"]\nledger = "l.db"\n'
    cycle = read_cycle(written(tmp_path, START + more + SOURCE + 'block_list = "b.txt"\n'))
    assert (cycle.root, cycle.judge_on, cycle.ledger) == (tmp_path / "p", (tmp_path / "val",), str(tmp_path / "l.db"))
    assert (cycle.sources[0].root, cycle.sources[0].block_list) == (str(tmp_path / "incoming"), tmp_path / "b.txt")
    bucket = START + 'ledger = "postgresql://u@h/d"\n' + SOURCE.replace("incoming", "s3://bucket/in?region=x")
    cycle = read_cycle(written(tmp_path, bucket))
    assert (cycle.ledger, cycle.sources[0].root) == ("postgresql://u@h/d", "s3://bucket/in?region=x")


def test_settings_are_those_of_a_command_line(tmp_path):
    table = '[settings]\ndata.batch_size = 64\n"training.precision" = "fp32"\ncluster.min_workers = "null"\n'
    cycle = read_cycle(written(tmp_path, START + table + SOURCE))
    assert cycle.settings == {"data.batch_size": 64, "training.precision": "fp32", "cluster.min_workers": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("root = ", "cannot be read"),
        (START + "images_per_dmp = 3\n" + SOURCE, "images_per_dmp: no such key; did you mean images_per_dump?"),
        (START + SOURCE + 'seel = "quiet"\n', "sources.seel: no such key; did you mean seal?"),
        (START + SOURCE + 'seal = "soon"\n', r"sources.0.seal='soon': should be 'marker' or 'quiet'"),
        (START + "replay_share = 1.5\n" + SOURCE, r"replay_share=1.5: should be less than 1"),
        (START + "epochs_per_dump = 3\n" + SOURCE, "give images_per_dump or epochs_per_dump"),
        (START, "sources: Field required"),
        (START + SOURCE + SOURCE, "two sources have name = 'web'"),
        (START + SOURCE + "number = 'batch-\\d+'\n", r"has 0 groups, and one must hold the number"),
        (START + SOURCE + "thresholds = { min_sde = 3 }\n", r"thresholds.min_sde: no such key; did you mean min_side?"),
        (START + SOURCE + "thresholds = { min_side = -3 }\n", r"min_side=-3: should be greater than or equal to 0"),
        (START + SOURCE + "reading = { in_place = true }\n", "sources.reading.in_place: a cycle keeps its own copy"),
        (START + 'base = "champion"\n' + SOURCE, "two checkpoints need two names"),
    ],
)
def test_mistakes(tmp_path, text, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_cycle(written(tmp_path, text))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("simclr_32px", 'optimizer.schedule = "cosine"', "settings.optimizer.schedule = 'cosine': a cycle goes on"),
        ("simclr_32px", "training.images_seen = 5", "settings.training.images_seen: the cycle sets it for each dump"),
        ("simclr_32px", "objective.temprature = 5", "did you mean objective.temperature?"),
        ("supervised_32px", "", "objective 'supervised' holds labels"),
        ("instdisc_32px", "", "objective 'instdisc' holds something of every sample"),
    ],
)
def test_a_recipe_that_cannot_go_on_from_dump_to_dump_is_refused_before_anything_starts(
    tmp_path, recipe, settings, said
):
    text = START.replace("simclr_32px", recipe) + f"[settings]\n{settings}\n" + SOURCE
    cycle = read_cycle(written(tmp_path, text))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        endless(find_recipe(recipe)(), cycle)
    assert said in str(error.value)
