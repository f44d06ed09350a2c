"""The ImageNet study on a few hundred made-up JPEGs: two ranks that stream, killed, stopped in an epoch, resumed."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT, results_of, rows

from repr_ray.data.decoded import load as load_data
from repr_ray.launch import main
from repr_ray.study.plan import plan
from repr_ray.study.reading import load
from repr_ray.training import checkpoint
from repr_ray.training.folder import TrialFolder


def jpegs(root: Path, train: int = 300, test: int = 41) -> Path:
    """Class folders as of ImageNet, of ten classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for k in range(count):
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            path = root / split / f"n{k % 10:08}" / f"{k}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = int(rng.integers(60, 110)), int(rng.integers(50, 90))
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=85)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("config", ["imagenet_resnet18"])
def test_two_ranks_stream_are_killed_and_resume(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the same bits; the config is that of the study but for its size."""
    monkeypatch.setenv("REPR_RAY_CACHE", str(tmp_path / "cache"))
    overrides = [
        *(
            "data.name=made_up",
            f"data.source={jpegs(tmp_path / 'images')}",
            "data.size=32",
            "data.evaluation_resize=36",
        ),
        *("seeds=[0]", "train.epochs=4", "train.batch_size=43", "train.precision=fp32"),
        *("train.optimizer.learning_rate=0.02", "schemes.repr.s1=1", "schemes.repr.s2=1", "schemes.repr.cycles=1"),
        *("resources.workers=2", "resources.cpus_per_worker=1"),
    ]
    path = ROOT / "configs" / f"{config}.yaml"
    trial = plan(load(str(path), overrides))[1]
    assert trial.scheme == "repr"
    assert main(["--config", str(path), "--dry-run", *overrides]) == 0
    assert "300 train, 41 test images of 10 classes" in capsys.readouterr().out
    assert "decoded as they are needed" in load_data(trial.data).notes[-1]

    def train(results: str, *how: str) -> list[int]:
        job = tmp_path / f"{results}.job"
        job.write_bytes(pickle.dumps((trial, tmp_path / results, tmp_path / f"{results}.store")))
        command = [sys.executable, str(Path(__file__).with_name("stream_ranks.py")), str(job)]
        ranks = [
            subprocess.Popen([*command, str(r), *how], env=os.environ, stderr=subprocess.DEVNULL) for r in range(2)
        ]
        return [rank.wait(timeout=200) for rank in ranks]

    assert train("undisturbed") == [0, 0]
    ended = train("disturbed", "kill", "9")  # in the second epoch, which has seven steps
    assert ended[1] == -9 and ended[0] != 0
    folder = TrialFolder(tmp_path / "disturbed", trial)
    assert not folder.done
    assert train("disturbed", "stop", "8") == [3, 3]
    assert checkpoint.newest_place(folder.path)[1] > 0
    assert train("disturbed") == [0, 0]
    ours, theirs = (results_of(tmp_path / name)[trial.name] for name in ("disturbed", "undisturbed"))
    assert ours["checksum"] == theirs["checksum"] and ours["data_digest"] == theirs["data_digest"]
    assert ours["workers"] == 2
    for table in ("epochs", "cycles"):
        assert rows(tmp_path / "disturbed", trial.name, table) == rows(tmp_path / "undisturbed", trial.name, table)
