"""Exports a released encoder as one ONNX file, after a comparison with PyTorch.

    images      [batch, C, H, W] float32   grey levels 0..1; the normalisation is part of the graph
    features     [batch, D]                the patch tokens' mean or the class token, as timm's model returns it
    patch_tokens [batch, N, D]             the patch tokens themselves, row by row, without the CLS token

This needs the extra `onnx`. Running the file needs only onnxruntime, or another runtime for ONNX.
"""

import logging
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from sscxr.errors import SscxrError
from sscxr.release import release

BOUND = 1e-4  # largest difference allowed; features are of order 1, and fp32 kernels differ by some 1e-6
_MOST_BYTES = 2_000_000_000  # protobuf's limit for one file
_BATCHES = (1, 3)  # sizes to compare, neither of which is traced


class ExportError(SscxrError):
    """An encoder cannot be exported; one line states why."""


class _Exported(nn.Module):
    """The encoder from grey levels to its two outputs."""

    def __init__(self, encoder: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = encoder, mean, std

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoder = cast(Any, self.encoder)
        tokens = encoder.forward_features((images - self.mean) / self.std)
        return encoder.forward_head(tokens), tokens[:, encoder.num_prefix_tokens :]


def export_onnx(folder: str | Path, file: str | Path, *, bound: float = BOUND) -> float:
    """Write the encoder in `folder` as ONNX; the file appears only if onnxruntime agrees with PyTorch.

    Args:
        folder: a released encoder.
        file: the .onnx file.
        bound: largest absolute difference allowed, of features and patch tokens.

    Returns:
        The largest difference found, on random images of two batch sizes.

    Raises:
        ExportError: the extra is not installed, no folder for the file, an encoder that is too large, or a
            difference above the bound.
        ReleaseError, SigningError: not a released encoder.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed; pip install 'sscxr[onnx]'") from None
    folder, file = Path(folder), Path(file)
    if not file.absolute().parent.is_dir():
        raise ExportError(f"no folder {file.parent} to write {file.name} into; make it first")
    encoder = release.load_encoder(folder)
    if 4 * sum(parameter.numel() for parameter in encoder.parameters()) > _MOST_BYTES:
        raise ExportError(f"the encoder in {folder} is larger than one ONNX file may be (2 GB)")
    exported = _Exported(encoder, *release.input_norm(folder)).eval()
    size = tuple(cast(Any, encoder).pretrained_cfg["input_size"])
    fresh = file.with_name(f".{file.name}.partial")
    try:
        _trace(exported, size, fresh)
        model = _without_traces(onnx.load(fresh))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, fresh)
        session = onnxruntime.InferenceSession(fresh, providers=["CPUExecutionProvider"])
        difference = max(_difference(session, exported, (batch, *size)) for batch in _BATCHES)
        if not difference <= bound:
            raise ExportError(f"onnxruntime and PyTorch differ by {difference:.1e}, more than {bound:.1e}")
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
    return difference


def _trace(exported: nn.Module, size: tuple[int, ...], file: Path) -> None:
    """Write the graph, with a batch of any size, weights inside; torch's progress is not shown."""
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.onnx.export(
                exported,
                (torch.zeros(2, *size),),
                file,
                input_names=["images"],
                output_names=["features", "patch_tokens"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch cannot export the encoder: {str(error).strip().splitlines()[0]}") from None
    finally:
        quiet.setLevel(level)


def _without_traces(model: Any) -> Any:
    """Return an ONNX model without the exporter's stack traces, which contain paths of this machine."""
    graphs = [model.graph, *model.functions]
    for item in (model, *graphs, *(part for graph in graphs for part in (*graph.node, *graph.value_info))):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return model


def _difference(session: Any, exported: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the largest absolute difference on images of one seed."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = exported(images)
    found = session.run(["features", "patch_tokens"], {"images": images.numpy()})
    return max(float((torch.from_numpy(a) - b).abs().max()) for a, b in zip(found, expected, strict=True))
