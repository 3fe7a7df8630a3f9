"""Bring along what lies beside a checkpoint's weights: tokenizer, templates, licence."""

import shutil
from pathlib import Path

# Weights, training state and code stay behind; every other file of a checkpoint comes along.
_LEFT_BEHIND = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"),
    *(".npz", ".tflite", ".py"),
}
_REWRITTEN = {"config.json", "README.md", "trainer_state.json"}
_TEMPLATES = "additional_chat_templates"


def copy_side_files(source: Path, out: Path) -> None:
    """Copy a checkpoint's files, all but those that the new checkpoint writes itself."""
    for file in sorted(source.iterdir()):
        wanted = file.suffix not in _LEFT_BEHIND and file.name not in _REWRITTEN
        hidden = file.name.startswith(".") or file.name.endswith(".index.json")
        if file.is_file() and wanted and not hidden:
            shutil.copyfile(file, out / file.name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, out / _TEMPLATES, dirs_exist_ok=True)
