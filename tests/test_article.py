"""The article's own code against these modules: its train.py as printed, its network's state dict."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from unet import UNet

ARTICLE = ROOT.parent / "shared" / "article.md"
pytestmark = pytest.mark.skipif(not ARTICLE.exists(), reason="the article's text is not beside this repository")


def blocks(text):
    return re.findall(r"```(?:python|py)\n(.*?)```", text, flags=re.S)


@pytest.fixture
def article():
    return ARTICLE.read_text()


def test_a_state_dict_of_the_articles_network_loads_strictly(article):
    code = "\n".join(block for block in blocks(article) if "class doubleConv" in block or "class unet" in block)
    forward = next(block for block in blocks(article) if "def forward(self, x):\n        skip" in block)
    space = {}
    exec(
        "import torch\nimport torch.nn as nn\nimport torchvision.transforms.functional as TF\n" + code + forward, space
    )
    for features, size in ((None, (161, 241)), ([4, 8, 16], (33, 50))):
        torch.manual_seed(0)
        theirs = (space["unet"](features=features) if features else space["unet"]()).eval()
        ours = UNet(features=features).eval() if features else UNet().eval()
        ours.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            assert (ours(image) - theirs(image)).abs().max() < 1e-5


def test_the_articles_train_py_runs_as_printed(article, tmp_path):
    training = article[article.index("### Training") : article.index("We got around")]
    (tmp_path / "article_train.py").write_text("\n".join(blocks(training)))
    draw = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 2)):
        images, masks = (tmp_path / f"dataset/augmented_{part}_{kind}" for kind in ("images", "masks"))
        images.mkdir(parents=True)
        masks.mkdir()
        for index in range(count):
            mask = np.zeros((40, 60), np.uint8)
            mask[10:30, 5 * index : 30] = 255
            noise = draw.integers(0, 80, (40, 60, 3), np.uint8)
            Image.fromarray(noise + mask[..., None] // 2).save(images / f"{index}.png")
            Image.fromarray(mask).save(masks / f"{index}.png")
    # The article's size and twenty epochs of the full network take an hour without a GPU.
    text = (tmp_path / "article_train.py").read_text()
    assert "NUM_EPOCHS = 20" in text and "image_size = (320,480)" in text
    text = text.replace("NUM_EPOCHS = 20", "NUM_EPOCHS = 2").replace("image_size = (320,480)", "image_size = (32,48)")
    (tmp_path / "article_train.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "article_train.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1", "PATH": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Dice") == 3 and done.stdout.count("=> Saving checkpoint") == 2
    assert {"0.png", "pred_0.png"} <= {path.name for path in (tmp_path / "saved_images").iterdir()}
    saved = torch.load(tmp_path / "checkpoint.pth")
    UNet().load_state_dict(saved["state_dict"])
    assert saved["optimizer"]["param_groups"][0]["lr"] == 1e-4
