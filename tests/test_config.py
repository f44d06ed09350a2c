"""Bad input gets one clear line; good input is coerced, frozen and complete."""

from pathlib import Path

import pytest
from support import ROOT, write_config

from repr_ray.study.config import ConfigError
from repr_ray.study.plan import plan
from repr_ray.study.reading import load

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_plans(path: Path) -> None:
    trials = plan(load(path))
    assert trials
    assert len({trial.name for trial in trials}) == len(trials)


def test_there_are_configs() -> None:
    assert {"quickstart", "cifar10", "cifar10_small"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.epocs=3"], ["train.epocs: unknown field; did you mean epochs?"]),
        (["trian={}"], ["trian: unknown field; did you mean train?"]),
        (["train.optimizer.lr=3"], ["train.optimizer.lr: unknown field", "learning_rate"]),
        (["train.lr=3"], ["train.lr: unknown field; did you mean train.optimizer.learning_rate?"]),
        (["optimizer.lr=3"], ["optimizer: unknown field; did you mean train.optimizer.learning_rate?"]),
        (["train.batchsize=3"], ["did you mean batch_size?"]),
        (["train.wd=3"], ["did you mean train.optimizer.weight_decay?"]),
        (["epochs=3"], ["epochs: unknown field; did you mean train.epochs?"]),
        (["schemes.repr.sparsity=0.5"], ["did you mean prune_ratio?"]),
        (["num_workers=2"], ["did you mean resources.workers?"]),
        (["schemes.repr.orderr=worst"], ["did you mean schemes.NAME.ranking.order?"]),
        (["model.depht=3"], ["model.depht: unknown field; did you mean depth?"]),
        (["schemes.repr.prune_ratio=1.2"], ["schemes.repr.prune_ratio=1.2", "less than 1"]),
        (["schemes.repr.prune_ratio=0"], ["schemes.repr.prune_ratio=0", "greater than 0"]),
        (["schemes.repr.s1=0"], ["schemes.repr.s1=0", "greater than or equal to 1"]),
        (["schemes.repr.s2=0"], ["schemes.repr.s2=0", "greater than or equal to 1"]),
        (["schemes.repr.s1=30"], ["schemes.repr:", "need 33 epochs, there are 8"]),
        (["schemes.repr.cycles=2"], ["2 cycles", "need 9 epochs, there are 8"]),
        (["schemes.repr.ranking={order: wrst}"], ["schemes.repr.ranking.order='wrst'", "'worst' or 'inverse'"]),
        (["schemes.repr.kind=rper"], ["schemes.repr", "'rper'", "'standard', 'repr'"]),
        (["train.optimizer={learning_rate: 1}"], ["train.optimizer.kind: missing; there are sgd, adam, adamw"]),
        (["train.epochs=abc"], ["train.epochs='abc'", "expected an integer"]),
        (["train.epochs=0"], ["train.epochs=0"]),
        (["seeds=[]"], ["seeds=[]"]),
        (["seeds=[1, 1]"], ["seeds: each seed once"]),
        (["seeds=[true]"], ["seeds.0=True: expected a number"]),
        (["seeds=[1, x]"], ["seeds.1='x'", "expected an integer"]),
        (["train.evaluate_every=true"], ["train.evaluate_every=True: expected a number"]),
        (["model.kernel=true"], ["model.kernel=True: expected a number"]),
        (["grid.train.evaluate_every=[8, true]"], ["grid: train.evaluate_every=True: expected a number"]),
        (["train.optimizer.learning_rate=.inf"], ["train.optimizer.learning_rate=inf", "finite"]),
        (["train.optimizer.learning_rate=.nan"], ["train.optimizer.learning_rate=nan"]),
        (["resources.wait_minutes=.inf"], ["resources.wait_minutes=inf", "finite"]),
        (["schemes.repr.reinit.gain=.inf"], ["schemes.repr.reinit.gain=inf", "finite"]),
        (["baseline=satndard"], ["baseline: 'satndard' is not a scheme; there are repr, standard"]),
        (["schemes={a: {kind: standard}, a: {kind: repr}}"], ["the key 'a' occurs twice"]),
        (["model.depth=1000000000"], ["model.depth=1000000000: input should be less than or equal to 1000"]),
        (["model.width=10000000000"], ["model.width=10000000000: input should be less than"]),
        (["train.batch_size=10000000000"], ["train.batch_size=10000000000: input should be less than"]),
        (["seeds=[" + "9" * 5000 + "]"], ["a number of 5,000 characters"]),
        (["seeds=[" + "9" * 300 + "]"], ["seeds.0=99", " ... ", "less than"]),
        (["train=" + "[" * 3000 + "]" * 3000], ["nested more than 50 levels deep"]),
        (["train." * 3000 + "epochs=1"], ["no field lies 3,000 levels deep"]),
        (["grid=null"], ["grid=None: expected a mapping"]),
        (["grid=null", "grid.train.epochs=5"], ["grid.train.epochs=5: expected a list, such as [0, 1, 2]"]),
        (["\x1b[31m=1"], ["\\x1b[31m: unknown field"]),
        (["data.name=mnits"], ["data.name='mnits'", "'digits'", "did you mean mnist?"]),
        (["data.name=my_own"], ["data.name='my_own'", "name the source as well"]),
        (
            ["data.name=tiny_imagenet"],
            ["data.source: torchvision has no tiny_imagenet; name hf:zh-plus/tiny-imagenet"],
        ),
        (["data.source=anywhere"], ["data.source=", "digits come with scikit-learn; leave the source out"]),
        (["data.label=fine"], ["data.label: torchvision has no columns or splits to name"]),
        (["data.splits.train=x"], ["data.splits: torchvision has no columns or splits"]),
        (["data.name=x", "data.source=hf:owner"], ["data.source='hf:owner'", "expected hf:OWNER/NAME"]),
        (["data.name=x", "data.source=torchvision:a-b"], ["data.source='torchvision:a-b'", "torchvision:CLASS"]),
        (["data.resize=10"], ["data.resize=10: crops of data.size=None"]),
        (["data.size=12", "data.evaluation_resize=10"], ["data.evaluation_resize=10: crops of data.size=12"]),
        (["data.validation_images=0", "data.split_by_seed=true"], ["data.split_by_seed: there are no validation"]),
        (["data.augment.random_resized_crop={}"], ["data.augment.random_resized_crop: needs data.size"]),
        (["data.augment.policy.kind=rand"], ["data.augment.policy", "'rand'", "'rand_augment', 'trivial_augment'"]),
        (["data.augment.mixup=-1"], ["data.augment.mixup=-1"]),
        (["data.label_noise=1"], ["data.label_noise=1"]),
        (["data.normalise=chanel"], ["data.normalise='chanel': input should be 'channel' or 'none'"]),
        (["data.normalise=3"], ["data.normalise=3: expected a mapping"]),
        (["data.normalise={mean: [0.5]}"], ["data.normalise.std: missing"]),
        (["data.normalise={mean: [0.5], std: [0]}"], ["data.normalise.std.0=0", "greater than or equal to 0.000001"]),
        (["data.normalise={mean: [125.3], std: [0.2]}"], ["data.normalise.mean.0=125.3", "less than or equal to 1"]),
        (["data.normalise={mean: [.5, .5], std: [.2]}"], ["data.normalise=", "2 means and 1 standard deviations"]),
        (
            ["data.normalise={mean: [.5], std: [.2], men: 1}"],
            ["data.normalise.men: unknown field; did you mean mean"],
        ),
        (["name=../evil"], ["name='../evil'"]),
        (["resources.gpus_per_worker=0.5"], ["resources.gpus_per_worker=0.5: whole GPUs", "trials_per_gpu=4"]),
        (["resources.trials_per_gpu=2", "resources.workers=2"], ["resources.trials_per_gpu=2", "GPU per rank"]),
        (["resources.trials_per_gpu=auto", "resources.gpus_per_worker=2"], ["resources.trials_per_gpu=auto"]),
        (
            ["resources.trials_per_gpu=some"],
            ["resources.trials_per_gpu='some'", "integer", "or input should be 'auto'"],
        ),
        (["resources.checkpoint_every={a: 1}"], ["resources.checkpoint_every={'a': 1}: expected an integer"]),
        (["resources.workers=128"], ["train.batch_size=64", "resources.workers=128"]),
        (["epochs"], ["epochs: expected key=value"]),
        (["mine.yaml"], ["mine.yaml: expected key=value; did you mean --config mine.yaml?"]),
        (["schemes.repr.selection={exclude:[first]}"], ["put a space after each colon"]),
        (["train.epochs={"], ["train.epochs={", "not YAML"]),
        (["grid.train.epocs=[1]"], ["train.epocs: unknown field; did you mean epochs?"]),
        (["grid.schemes.rerp.s1=[1]"], ["grid.schemes.rerp.s1: no such scheme"]),
        (["grid.resources.workers=[1, 2]"], ["grid.resources.workers: only fields of"]),
    ],
)
def test_bad_input_names_the_field_and_the_way_out(tmp_path: Path, overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(load(write_config(tmp_path), overrides))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in expected:
        assert part in message


def test_all_errors_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write_config(tmp_path), ["train.epocs=3", "schemes.repr.prune_ratio=2", "data.flp=true"])
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        ("a: [", "not YAML"),
        ("- 1", "expected a mapping"),
        ("", "expected a mapping"),
        ("name: a\nname: b", r"the key 'name' occurs twice \(line 2, column 1\)"),
        (
            "- x: &a ["
            + "x, " * 9
            + "]\n"
            + "".join(f"- &{b} [{f'*{a}, ' * 9}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
            "values",
        ),
        ("&a [*a]", "contains itself"),
        ("a: " * 3, "not YAML"),
        ("a: !!python/name:os.system x", "not YAML"),
        ("x" * 1_000_000, "1,000,000 characters"),
        (str([0] * 150_000), "more than 100,000 values"),
        ("\n".join(" " * level + "a:" for level in range(600)), "nested more than 50 levels"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        load(path)


def test_overrides_are_yaml_and_replace_blocks(tmp_path: Path) -> None:
    config = load(
        write_config(tmp_path),
        ["train.optimizer.learning_rate=1e-2", "schemes.repr.ranking={order: inverse}", "seeds=[3, 4]"],
    )
    assert config.train.optimizer.learning_rate == 0.01  # PyYAML reads 1e-2 as text
    assert config.schemes["repr"].ranking.order == "inverse"  # type: ignore[union-attr]
    assert config.seeds == (3, 4)


@pytest.mark.parametrize(("text", "other"), [("010", "8"), ("-0_17", "-15"), ("1:30", "90"), ("1:30.5", "90.5")])
def test_a_number_is_the_one_that_is_written(tmp_path: Path, text: str, other: str) -> None:
    with pytest.raises(ConfigError, match=rf"{text} would be the number {other}; write it in decimal"):
        load(write_config(tmp_path), [f"seeds=[{text}]"])
    path = tmp_path / "numbers.yaml"
    path.write_text(f"seeds: [1, {text}]")
    with pytest.raises(ConfigError, match=rf"{text} would be .*line 1, column 12"):
        load(path)


def test_many_errors_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write_config(tmp_path), [f"seeds={['x'] * 500}"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("and 481 more errors")


def test_dates_are_names(tmp_path: Path) -> None:
    config = load(write_config(tmp_path), ["name=2024-01-01", "schemes.2024-01-01={kind: standard}"])
    assert config.name == "2024-01-01"
    assert "2024-01-01" in config.schemes


def test_frozen(tmp_path: Path) -> None:
    config = load(write_config(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3  # type: ignore[misc]


def test_a_relative_source_does_not_depend_on_the_worker(tmp_path: Path) -> None:
    assert Path(
        load(write_config(tmp_path), ["data.name=cifar10", "data.source=some/folder"]).data.source
    ).is_absolute()
    assert load(write_config(tmp_path), ["data.name=cifar10", "data.source=s3://bucket/x"]).data.source == (
        "s3://bucket/x"
    )
