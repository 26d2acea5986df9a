"""A trained network as ONNX or as a PyTorch program, for use without this repository."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from parts.errors import UserError
from parts.files import write_whole
from parts.networks import Network

_READ_NAMES = {  # of classes: the expression that gives them from an exported file
    ".onnx": 'session.get_modelmeta().custom_metadata_map["classes"]',
    ".pt2": 'torch.export.load(path, extra_files=(names := {"classes": ""})), names["classes"]',
}
_TOLERANCE = 1e-3  # of an exported network's float32 logits: another runtime sums in another order


@dataclass(frozen=True)
class _Exported:
    """An exported network, read back from its file."""

    run: Callable[[torch.Tensor], torch.Tensor]  # images (N, channels, H, W) -> logits
    runtime: str  # what runs it, in words


def export(network: Network, path: str | Path, names: Sequence[str] = ()) -> str:
    """Writes a network to `path` (.onnx or .pt2) with a free number of images, height and width.

    Its input `images` is float32 (N, in_channels, H, W) in [0, 1], its output `logits` (N, 1, H, W), foreground above
    0, or (N, C, H, W) of C classes, whose `names` go along as a JSON list under "classes". Before the file appears it
    is read back, run at several sizes and compared with PyTorch. Returns a line of words for the user.

    UserError: packages are missing, or the outputs differ.
    """
    path = Path(path)
    network = network.cpu().float().eval()
    stride = network.stride
    extra = {"classes": json.dumps(names)} if names else {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder, "network" + path.suffix)
        example = torch.zeros(2, network.in_channels, 4 * stride, 4 * stride + 16)
        exported = _EXPORTERS[path.suffix](network, file, example, extra)
        trials = _noise(network.in_channels, stride)
        worst = max(float((exported.run(images) - network(images)).abs().max()) for images in trials)
        if not worst <= _TOLERANCE:  # nor where it is not a number
            raise UserError(f"{path}: its outputs are up to {worst:.2g} off PyTorch's, so it was not written.")
        content = file.read_bytes()
    write_whole(path, lambda file: file.write(content))
    told = (
        f"{path}: {len(content) / 1e6:.1f} MB; images float32 (N, {network.in_channels}, H, W) in [0, 1] -> logits "
        f"(N, {len(names) or 1}, H, W), any N, any H and W from {2 * stride}. At {len(trials)} sizes "
        f"{exported.runtime} differs from PyTorch by {worst:.1e} at most."
    )
    if names:
        told += (
            " A pixel's class is the channel of its highest logit; their names are in the file, "
            f"{_READ_NAMES[path.suffix]}: {', '.join(names)}."
        )
    return told


def _noise(channels: int, stride: int) -> list[torch.Tensor]:
    """Images of several numbers and sizes, one of which is no multiple of the network's stride."""
    shapes = [(1, 2 * stride, 2 * stride), (2, 3 * stride, 4 * stride), (3, 4 * stride + 3, 2 * stride + 3)]
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(count, channels, height, width, generator=generator) for count, height, width in shapes]


def _to_pt2(network: nn.Module, file: Path, example: torch.Tensor, extra: dict[str, str]) -> _Exported:
    program = torch.export.export(network, (example,), dynamic_shapes=_free_sizes())
    torch.export.save(program, file, extra_files=extra)
    return _Exported(torch.export.load(file).module(), "the exported program")


def _to_onnx(network: nn.Module, file: Path, example: torch.Tensor, extra: dict[str, str]) -> _Exported:
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"EXPORT to .onnx needs {' and '.join(absent)}: pip install {' '.join(absent)} onnxruntime. A .pt2 needs "
            "nothing more."
        )
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=_free_sizes(),
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
    )
    assert program is not None  # as it is with dynamo=True
    program.model.metadata_props.update(extra)
    program.save(file)
    if importlib.util.find_spec("onnxruntime"):
        runtime = importlib.import_module("onnxruntime")
        session, name = runtime.InferenceSession(file, providers=["CPUExecutionProvider"]), "onnxruntime"
    else:
        reference = importlib.import_module("onnx.reference")
        session, name = reference.ReferenceEvaluator(str(file)), "onnx's reference"

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return _Exported(run, name)


def _free_sizes() -> tuple[dict[int, Dim], ...]:
    """The dimensions of `images` that may differ: their number, height and width."""
    return ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)


_EXPORTERS = {".pt2": _to_pt2, ".onnx": _to_onnx}
