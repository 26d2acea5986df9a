"""A trained network as ONNX or as a PyTorch program, for use without this repository."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from parts.errors import UserError
from parts.files import write_whole
from parts.networks import Network

_READ = {  # the metadata of an exported file, in Python
    ".onnx": "session.get_modelmeta().custom_metadata_map",
    ".pt2": 'torch.export.load(path, extra_files=(metadata := dict.fromkeys({names}, ""))), metadata',
}
_AXES = {0: "batch", 2: "height", 3: "width"}  # of images and logits, those that may be free
_RUNTIMES = {".onnx": "onnxruntime", ".pt2": "the exported program"}
_TOLERANCE = 1e-3  # of an exported network's float32 logits: another runtime sums in another order
_SIDE = 32  # pixels; of less than two sides many networks make maps of one pixel, for which exporters fix a size

_Run = Callable[[torch.Tensor], torch.Tensor]  # an exported network, read back: images (N, channels, H, W) -> logits


def export(
    network: Network, path: str | Path, metadata: Mapping[str, Any] | None = None, size: tuple[int, int] | None = None
) -> str:
    """Writes a network to `path` (.onnx or .pt2) with a free number of images, and free or fixed height and width.

    Its input `images` is float32 (N, in_channels, H, W) in [0, 1], its output `logits` (N, 1, H, W), foreground above
    0, or (N, C, H, W) of C classes. `size`: the fixed (H, W); None: both are free. `metadata` goes along, each value as
    JSON under its name; "classes" are the names of the classes, () for one foreground. Before the file appears it is
    read back, run at several sizes and compared with PyTorch. Returns a line of words for the user.

    UserError: packages are missing, the network cannot be exported, or the outputs differ.
    """
    path, metadata = Path(path), metadata or {}
    if path.suffix not in _EXPORTERS:
        raise UserError(f"{path}: an exported network is a file that ends in {' or '.join(_EXPORTERS)}.")
    network = copy.deepcopy(network).cpu().float().eval()  # a Predictor may go on with it elsewhere
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example, *trials = _noise(network, size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder, "network" + path.suffix)
        extra = {name: json.dumps(value) for name, value in metadata.items()}
        with _told_in_words(path, size):
            axes = {axis: name for axis, name in _AXES.items() if size is None or axis == 0}
            run = _EXPORTERS[path.suffix](network, file, example, extra, axes)
            worst = max(float((run(images) - network(images)).abs().max()) for images in trials)
        if not worst <= _TOLERANCE:  # nor where it is not a number
            raise UserError(f"{path}: its outputs are up to {worst:.2g} off PyTorch's, so it was not written.")
        content = file.read_bytes()
    write_whole(path, lambda file: file.write(content))
    sides, sizes = "H, W", f"any N, any H and W from {min(trials[0].shape[2:])}"
    if size is not None:
        sides, sizes = f"{size[0]}, {size[1]}", "any N"
    told = (
        f"{path}: {len(content) / 1e6:.1f} MB; images float32 (N, {network.in_channels}, {sides}) in [0, 1] -> logits "
        f"(N, {network.out_channels}, {sides}), {sizes}. In {len(trials)} trials {_RUNTIMES[path.suffix]} differs from "
        f"PyTorch by {worst:.1e} at most."
    )
    if names := metadata.get("classes"):
        rule = "A pixel's class is the channel of its highest logit"
        if metadata.get("threshold") is not None:
            rule = "A pixel is of each class whose logit is above that of the threshold"
        told += f" {rule}: {', '.join(names)}."
    if metadata:
        told += f" In the file stand {', '.join(metadata)}, as JSON: {_READ[path.suffix].format(names=list(metadata))}."
    return told


def _noise(network: Network, size: tuple[int, int] | None) -> list[torch.Tensor]:
    """Images for an export and three trials: of several numbers, and sizes where those are free.

    One of the sizes is no multiple of the network's stride.
    """
    side = network.stride * math.ceil(_SIDE / network.stride)
    sizes = [(4 * side, 4 * side + 16), (2 * side, 2 * side), (3 * side, 4 * side), (4 * side + 3, 2 * side + 3)]
    if size is not None:
        sizes = [size] * 4
    generator = torch.Generator().manual_seed(0)
    return [
        torch.rand(count, network.in_channels, *chosen, generator=generator)
        for count, chosen in zip((2, 1, 2, 3), sizes)
    ]


@contextmanager
def _told_in_words(path: Path, size: tuple[int, int] | None) -> Iterator[None]:
    """Turns what an exporter raises at a network that it cannot follow into a UserError."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # exporters have many kinds
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        lines = [line.strip() for line in str(reason).splitlines() if line.strip()] or [""]
        cure = "" if size else ", or by sizes (then --image-size H W, which fixes them, can do)"
        raise UserError(
            f"{path}: this network cannot be exported: {type(reason).__name__}: {lines[0][:300]}\nMostly its forward "
            f"goes different ways by values of the image, as in `if x.max() > 1`{cure}. Write it with torch.where, or "
            "predict with predict.py and Predictor, which take it as it is."
        ) from error


def _to_pt2(network: nn.Module, file: Path, example: torch.Tensor, extra: dict[str, str], axes: dict[int, str]) -> _Run:
    program = torch.export.export(network, (example,), dynamic_shapes=(dict.fromkeys(axes, Dim.DYNAMIC),))
    torch.export.save(program, file, extra_files=extra)
    return torch.export.load(file).module()


def _to_onnx(
    network: nn.Module, file: Path, example: torch.Tensor, extra: dict[str, str], axes: dict[int, str]
) -> _Run:
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if absent:
        packages = " ".join(absent)
        raise UserError(f"EXPORT to .onnx needs more: pip install {packages}. A .pt2 needs nothing more.")
    names: dict[str, Any] = dict(input_names=["images"], output_names=["logits"])
    program = torch.onnx.export(network, (example,), dynamo=True, dynamic_shapes=(axes,), verbose=False, **names)
    assert program is not None  # as it is with dynamo=True
    program.model.metadata_props.update(extra)
    program.save(file)
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


_EXPORTERS = {".pt2": _to_pt2, ".onnx": _to_onnx}
