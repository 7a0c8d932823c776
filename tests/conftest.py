"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seghiero_core.hierarchy.tree import Hierarchy
from support.processes import ROOT
from support.trees import CAMVID


@pytest.fixture(scope="session", autouse=True)
def _cache_of_checks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGHIERO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The CamVid folder: `$SEGHIERO_CAMVID`, else `../shared/camvid` from the project's root, else a skip."""
    folder = Path(os.environ.get("SEGHIERO_CAMVID") or ROOT.parent / "shared" / "camvid")
    if not (folder / "train" / "images").is_dir():
        pytest.skip(f"CamVid is not at {folder}; set SEGHIERO_CAMVID to a folder with train/ and val/")
    return folder


@pytest.fixture(scope="session")
def camvid_hierarchy() -> Hierarchy:
    return Hierarchy.from_config(CAMVID)


@pytest.fixture
def ragged() -> Hierarchy:
    """Three levels, values that are not contiguous, one leaf under the root and a label at an inner node.

    Values to names: 0 sky, 2 boots, 5 flats, 9 shoes (an inner node), 300 hat; nodes in order: sky, boots, flats, hat,
    shoes, clothes.
    """
    return Hierarchy.from_config(
        {
            "labels": {0: "sky", 2: "boots", 5: "flats", 9: "shoes", 300: "hat"},
            "tree": {"sky": None, "clothes": {"shoes": ["boots", "flats"], "hat": None}},
        }
    )


class Folders:
    """A data set in the making: `images` and `masks` folders, and writers that take arrays."""

    def __init__(self, root: Path) -> None:
        self.images, self.masks = root / "images", root / "masks"
        self.images.mkdir(parents=True)
        self.masks.mkdir()

    def add(self, name: str, mask: np.ndarray, image: np.ndarray | None = None, extension: str = "png") -> None:
        """Save a pair; without `image` its pixels are random, from a seed that is the number of pairs so far."""
        if image is None:
            rng = np.random.default_rng(len(list(self.images.rglob("*.*"))))
            image = rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
        for path, array in ((self.images / f"{name}.{extension}", image), (self.masks / f"{name}.png", mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "set")


@pytest.fixture
def run(capsys, monkeypatch):
    """`run(*words)` is a command line in this process: (exit code, stdout, stderr)."""
    from seghiero_cli.main import main

    def run_command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["seghiero", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run_command


SMALL = """
dataset: {train: {images: train/images, masks: train/masks}, val: {images: val/images, masks: val/masks}}
classes:
  labels: [sky, grass, disc, ring]
  tree: {ground: [sky, grass], round: [disc, ring]}
backbone: {type: resnet, depth: 18}
head: {type: extremely_fast_segformer, proj_dim: 16}
transform: {size: [48, 64]}
training: {device: cpu, epochs: 2, batch_size: 2, workers: 0, precision: fp32}
output: {name: small}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The config of a run that takes seconds: four 48x64 px images to train on and two to validate."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.repeat(rng.permutation(4).astype(np.uint8), 12)[:, None].repeat(64, axis=1)
            mask[:3, :3] = 255
            image = (60 * mask[..., None] + rng.integers(0, 40, (48, 64, 3))).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
    path = tmp_path / "cfg.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def starter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter's config and data; runs go below its `runs`."""
    from seghiero_core.scaffold.starter import write_starter

    return write_starter(tmp_path_factory.mktemp("starter") / "starter").parent


@pytest.fixture(scope="session")
def tiny_run(starter_folder: Path) -> Path:
    """A run folder with an untrained tiny network over the starter's classes."""
    from support.tiny import TINY, save_untrained

    return save_untrained(starter_folder / "cfg.yaml", [*TINY, "output.name=tiny"]).run_dir


@pytest.fixture(scope="session")
def project_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples of the documentation run: after `seghiero init my-project`, a training and an export.

    Beside it lie street.jpg and street.png, an image with its mask.
    """
    from seghiero_core.export.options import ExportOptions
    from seghiero_core.export.single_file import export_checkpoint
    from seghiero_core.scaffold.starter import write_starter
    from support.tiny import TINY, save_untrained

    folder = tmp_path_factory.mktemp("docs")
    cfg = write_starter(folder / "my-project")
    run = save_untrained(cfg, [*TINY, "output.name=demo"]).run_dir
    export_checkpoint(run / "best", run / "model.onnx", ExportOptions())
    data = cfg.parent / "data" / "val"
    Image.open(sorted((data / "images").iterdir())[0]).convert("RGB").save(folder / "street.jpg")
    shutil.copy(sorted((data / "masks").iterdir())[0], folder / "street.png")
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty current folder, and a plugin loader that has loaded nothing and sees no installed plugins."""
    from seghiero_core.plugins import VARIABLE, PluginLoader, use_loader

    monkeypatch.delenv(VARIABLE, raising=False)
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with use_loader(PluginLoader(list_entry_points=tuple)):
        yield folder
