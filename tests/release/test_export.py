"""ONNX: the same features and patch tokens as PyTorch, any batch, nothing of this machine in the file."""

import os
import sys
from pathlib import Path

import pytest
import torch
from releases import encoder, write

from sscxr.commands import cli
from sscxr.release import export

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("encoder") / "encoder")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    file = folder.parent / "encoder.onnx"
    assert export.export_onnx(folder, file) < 1e-4
    return file


@pytest.mark.slow
def test_outputs_are_the_models_for_any_batch(file: Path) -> None:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["images"]
    assert session.get_inputs()[0].shape == ["batch", 1, 32, 32]
    shapes = {item.name: item.shape for item in session.get_outputs()}
    assert shapes == {"features": ["batch", 192], "patch_tokens": ["batch", 16, 192]}
    model = encoder().eval()
    for batch in (1, 2, 5):
        grey = torch.rand(batch, 1, 32, 32, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            tokens = model.forward_features((grey - 0.5) / 0.25)[:, 1:]
        features, patches = session.run(["features", "patch_tokens"], {"images": grey.numpy()})
        torch.testing.assert_close(torch.from_numpy(patches), tokens, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.from_numpy(features), tokens.mean(dim=1), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_one_file_without_this_machines_paths(file: Path) -> None:
    data = file.read_bytes()
    for path in (Path(export.__file__).parent, Path(torch.__file__).parent, Path.home()):
        assert os.fsencode(path) + b"/" not in data
    assert sorted(path.name for path in file.parent.iterdir()) == ["encoder", "encoder.onnx"]


@pytest.mark.slow
def test_a_difference_above_the_bound_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(export.ExportError, match="differ by"):
        export.export_onnx(folder, tmp_path / "e.onnx", bound=-1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(export.ExportError, match=r"no folder .*nowhere"):
        export.export_onnx(folder, tmp_path / "nowhere" / "e.onnx")


@pytest.mark.slow
def test_the_command_prints_the_difference(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "e.onnx"
    monkeypatch.setattr(sys, "argv", ["sscxr", "encoder", "export", str(folder), "--onnx", str(file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code in (0, None)
    assert file.is_file()
    assert out.startswith(f"{file}: largest difference from PyTorch ")
    assert err == ""


def test_without_the_extra_it_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(export.ExportError, match=r"pip install 'sscxr\[onnx\]'"):
        export.export_onnx(folder, tmp_path / "e.onnx")
