"""The article's own code against these modules: its train.py as printed, its network's state dict."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, WAIT
from PIL import Image

from unet import UNet

# ruff: noqa: E501, W291
# From "U Net architure for Image Segmentation", as printed there.
NETWORK = """
import torch
import torch.nn as nn
import torchvision.transforms.functional as TF

class doubleConv(nn.Module):
    def __init__(self, in_channel, out_channel):
        super(doubleConv, self).__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channel, out_channel, kernel_size=3,stride=1, padding=1, bias=False), # Bias is set to False as we are using batch normalization
            nn.BatchNorm2d(out_channel),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channel, out_channel, kernel_size=3, stride=1, padding=1, bias=False),
            nn.BatchNorm2d(out_channel),
            nn.ReLU(inplace=True)
        )
    def forward(self, x):
        return self.conv(x)

class unet(nn.Module):
    def __init__(self, in_channels=3, out_channels=1, features=[64, 128, 256, 512]):
        super(unet, self).__init__()
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)

        # Encoder
        for feature in features:
            self.encoder.append(doubleConv(in_channels, feature))
            in_channels = feature

        # Decoder
        for feature in reversed(features):
            self.decoder.append(nn.ConvTranspose2d(
                feature * 2, feature, kernel_size=2, stride=2))
            self.decoder.append(doubleConv(feature * 2, feature))

        # bottleneck
        self.middle = doubleConv(features[-1], features[-1]*2)
        self.output_conv = nn.Conv2d(
            features[0], out_channels, kernel_size=1, stride=1)
    def forward(self, x):
        skip_connections = []

        for encode in self.encoder:
            x = encode(x)
            skip_connections.append(x)
            x = self.pool(x)

        x = self.middle(x)
        skip_connections = skip_connections[::-1]

        for i in range(0, len(self.decoder), 2):
            x = self.decoder[i](x)
            skip_conn = skip_connections[i//2]

            if x.shape != skip_conn.shape:
                x = TF.resize(x, size=skip_conn.shape[2:])

            cat_skip = torch.cat([skip_conn, x], dim=1)
            x = self.decoder[i+1](cat_skip)

        x = self.output_conv(x)
        return x
"""

TRAINING = """
import torch
from tqdm import tqdm
import numpy as np
import pytest
import torch.nn as nn
import torch.optim as optim
from unet import unet as UNET
import albumentations as A 
from albumentations.pytorch import ToTensorV2

from utils import (
    check_accuracy,
    load_checkpoint,
    save_checkpoint,
    get_loaders,
    save_predictions
)

# HyperParams
LEARNING_RATE = 1e-4 # You can use LrOnPlateau as well
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH_SIZE = 16
NUM_EPOCHS = 20
NUM_WORKERS = 1
PIN_MEMORY = False
LOAD_MODEL = False
TRAIN_IMG_DIR = "./dataset/augmented_train_images"
TRAIN_MASK_DIR = "./dataset/augmented_train_masks"
VAL_IMG_DIR = "./dataset/augmented_test_images"
VAL_MASK_DIR = "./dataset/augmented_test_masks"
image_size = (320,480)

# Transormations

transform = A.Compose(
    [
        A.Resize(height=image_size[0], width=image_size[1]),
        A.Normalize(
            mean=[0.0, 0.0, 0.0],
            std=[1.0, 1.0, 1.0],
            max_pixel_value=255.0,
        ),
        ToTensorV2(),
    ],
)

model = UNET(in_channels=3, out_channels=1).to(DEVICE)
loss_fn = nn.BCEWithLogitsLoss()
optimizer = optim.Adam(model.parameters(), lr=LEARNING_RATE)

train_loader, val_loader = get_loaders(
    TRAIN_IMG_DIR,
    TRAIN_MASK_DIR,
    VAL_IMG_DIR,
    VAL_MASK_DIR,
    BATCH_SIZE,
    NUM_WORKERS,
    PIN_MEMORY,
    transform=transform
)

# Train function

def train_fn(loader, model, optimizer, loss_fn, scaler):
    loop = tqdm(loader)

    for batch_idx, (data, targets) in enumerate(loop):
        data = data.to(device=DEVICE)
        targets = targets.float().unsqueeze(1).to(device=DEVICE)

        # forward, using mixed precision
        with torch.cuda.amp.autocast():
            predictions = model(data)
            loss = loss_fn(predictions, targets)

        # backward
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

        # update tqdm loop
        loop.set_postfix(loss=loss.item())


# Check initial accuracy
check_accuracy(val_loader, model, device=DEVICE)
# Accuracy might be high, because its all random, and majority of the image is background. That is why we look at die score

# Using mixed precision training
scaler = torch.cuda.amp.GradScaler()

for epoch in range(NUM_EPOCHS):
    print("Epoch: {}".format(epoch))
    train_fn(train_loader, model, optimizer, loss_fn, scaler)

    # save model
    checkpoint = {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    save_checkpoint(checkpoint)

    # check accuracy
    check_accuracy(val_loader, model, device=DEVICE)

    # print some examples to a folder
    save_predictions(
        val_loader, model, folder="saved_images/", device=DEVICE
    )
"""


def test_a_state_dict_of_the_articles_network_loads_strictly():
    space = {}
    exec(NETWORK, space)
    for features, size in ((None, (33, 50)), ([4, 8, 16], (161, 241))):
        torch.manual_seed(0)
        theirs = (space["unet"](features=features) if features else space["unet"]()).eval()
        ours = UNet(features=features).eval() if features else UNet().eval()
        ours.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            assert (ours(image) - theirs(image)).abs().max() < 1e-5


@pytest.mark.slow
def test_the_articles_train_py_runs_as_printed(tmp_path):
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
    text = TRAINING
    for printed, smaller in (
        ("NUM_EPOCHS = 20", "NUM_EPOCHS = 2"),
        ("image_size = (320,480)", "image_size = (32,48)"),
        ("out_channels=1)", "out_channels=1, features=[4, 8, 16, 32])"),
    ):
        assert text.count(printed) == 1
        text = text.replace(printed, smaller)
    (tmp_path / "article_train.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "article_train.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1", "PATH": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Dice") == 3 and done.stdout.count("=> Saving checkpoint") == 2
    assert {"0.png", "pred_0.png"} <= {path.name for path in (tmp_path / "saved_images").iterdir()}
    saved = torch.load(tmp_path / "checkpoint.pth")
    UNet(features=(4, 8, 16, 32)).load_state_dict(saved["state_dict"])
    assert saved["optimizer"]["param_groups"][0]["lr"] == 1e-4
