"""What is exported gives the run's embeddings, by the code in its README, in a process that never sees feral."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import jobs.export
from pipeline.experiment import build_experiment
from pipeline.export import exporting
from pipeline.export.exporting import TOLERANCE, difference, export
from pipeline.export.forms import FORMS
from pipeline.export.trained import Trained
from pipeline.run import Run
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state

RESNET = {"name": "resnet18", "image_size": 64, "stem": "imagenet", "std": [0.5, 0.5, 0.4]}
SMALL = {"name": "resnet18", "image_size": 32, "stem": "small_stride2", "arguments": {"channels": [8, 8, 16, 16]}}
POOLED = SMALL | {"image_size": 48, "stem": "small_pool"}
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}
VIT = {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "arguments": TINY}
MEAN_VIT = VIT | {"pool": "mean"}
TEXT = {"width": 32, "layers": 1, "heads": 2, "context_length": 16}
CLIP = {"name": "clip", "text": TEXT, "dim": 24}
OBJECTIVES = {
    "simclr": {"name": "simclr", "projector_dims": [16, 8]},
    "mae": {"name": "mae"},
    "iic": {"name": "iic"},
    "colorization": {"name": "colorization"},
    "split_brain": {"name": "split_brain"},
    "clip": CLIP,
    "siglip": CLIP | {"name": "siglip"},
}


def make_run(path: Path, objective: str, encoder: dict) -> Run:
    """A run whose weights and statistics are all drawn, as no initialisation has them."""
    experiment = build_experiment({"data": {}, "objective": OBJECTIVES[objective], "encoder": encoder})
    run = Run.prepare(path, experiment, ["feral", "pretrain"])
    state = fresh_state(experiment, torch.device("cpu"))
    with torch.no_grad():
        for name, value in state.objective.state_dict().items():
            if value.is_floating_point() and value.ndim:
                value += 0.1 * (torch.rand_like(value) if "running_var" in name else torch.randn_like(value))
    save_checkpoint(run.checkpoints, state, keep=1)
    return run


CASES = [
    ("safetensors", "simclr", SMALL),
    ("safetensors", "simclr", POOLED),
    ("safetensors", "simclr", RESNET),
    ("safetensors", "mae", MEAN_VIT),
    ("timm", "simclr", RESNET),
    ("timm", "simclr", VIT),
    ("timm", "mae", MEAN_VIT),
    ("hf", "simclr", RESNET),
    ("hf", "mae", MEAN_VIT),
    ("torchvision", "simclr", RESNET),
    ("torchvision", "simclr", VIT),
    ("open_clip", "clip", RESNET),
    ("open_clip", "siglip", RESNET),
    ("open_clip", "clip", {"name": "vit_tiny_patch16_224", "image_size": 224}),
    ("onnx", "simclr", SMALL),
    ("onnx", "iic", SMALL),
    ("onnx", "mae", MEAN_VIT),
    ("torch_export", "simclr", SMALL),
    ("torch_export", "iic", SMALL),
    ("torch_export", "mae", MEAN_VIT),
]
FEW = {("safetensors", "simclr", 32), ("timm", "mae", 32), ("open_clip", "clip", 64), ("onnx", "iic", 32)}
BEFORE = """
import sys
from safetensors.torch import load_file, save_file
pixels = load_file(sys.argv[3])["pixels"]
"""
APART = """
assert not any(name.split(".")[0] in ("ssl_models", "pipeline", "jobs", "ray") for name in sys.modules)
save_file({"embeddings": embeddings.detach().contiguous()}, sys.argv[2])
"""


def case(form: str, objective: str, encoder: dict):
    """A process each: most run in CI only."""
    few = (form, objective, encoder["image_size"]) in FEW
    return pytest.param(form, objective, encoder, marks=() if few else pytest.mark.long)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "objective", "encoder"), [case(*one) for one in CASES])
def test_the_code_in_the_readme_gives_the_embeddings_of_the_run(tmp_path, form, objective, encoder):
    needed = {"hf": "transformers", "onnx": "onnxruntime"}.get(form)
    if needed:
        pytest.importorskip(needed)
    run = make_run(tmp_path / "run", objective, encoder)
    exported = export(run, form, tmp_path / "out")
    assert exported.missing is None
    trained = Trained.of(run)
    side = encoder["image_size"]
    pixels = torch.rand(3, 3, side, side)  # another number of images than that which was traced
    save_file({"pixels": pixels}, tmp_path / "pixels")
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)[1]
    code = code.replace('"FOLDER"', "sys.argv[1]")
    before = (
        'import sys\nfrom safetensors.torch import load_file, save_file\npixels = load_file(sys.argv[3])["pixels"]\n'
    )
    command = [sys.executable, "-I", "-c", before + code + APART]
    subprocess.run([*command, tmp_path / "out", tmp_path / "found", tmp_path / "pixels"], check=True, cwd="/")
    theirs = load_file(tmp_path / "found")["embeddings"]
    expected = FORMS[form].expected(trained)
    assert difference(lambda _: theirs, expected, pixels) <= TOLERANCE
    assert theirs.std(0).max() > 0  # not one answer to all


def test_open_clips_text_tower_is_the_runs(tmp_path):
    import open_clip

    run = make_run(tmp_path / "run", "siglip", RESNET)
    export(run, "open_clip", tmp_path / "out")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    objective = Trained.of(run).objective
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(["a dog", "two cats on a mat"])
    assert tokens.shape == (2, 16)
    with torch.no_grad():
        theirs, ours = model.encode_text(tokens, normalize=True), objective.project_text(tokens)
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert torch.equal(model.logit_scale, objective.log_scale)
    assert torch.equal(model.logit_bias, objective.bias)


@pytest.mark.parametrize(
    ("form", "objective", "encoder", "message"),
    [
        ("timm", "simclr", SMALL, "stem=small_stride2 .* use --to safetensors"),
        ("torchvision", "simclr", SMALL, "stem=small_stride2 .* use --to safetensors"),
        ("torchvision", "mae", MEAN_VIT, "pool=mean.*use --to timm"),
        ("timm", "iic", RESNET, "iic embeds by more than one pass .* use --to onnx"),
        ("safetensors", "iic", SMALL, "iic embeds by more than one pass .* use --to onnx"),
        ("open_clip", "simclr", RESNET, "simclr trains no text tower: use --to timm"),
        ("open_clip", "clip", VIT, "by name alone.*use --to timm"),
        ("coreml", "simclr", SMALL, "no form is called 'coreml': there are safetensors, timm"),
    ],
)
def test_what_a_form_cannot_hold_is_refused_with_the_way_out(tmp_path, form, objective, encoder, message):
    run = make_run(tmp_path / "run", objective, encoder)
    with pytest.raises(ValueError, match=message):
        export(run, form, tmp_path / "out" / "here")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_command_names_every_form():
    assert set(re.findall(r"[a-z_]+", jobs.export.FORMS)) - {"or"} == set(FORMS)


def test_an_export_that_embeds_otherwise_is_not_left_behind(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "simclr", SMALL)
    monkeypatch.setattr(exporting, "difference", lambda *args: 0.01)
    with pytest.raises(ValueError, match=r"differ by 0\.01 of the greatest"):
        export(run, "safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_replaced_only_when_asked(tmp_path):
    run = make_run(tmp_path / "run", "simclr", SMALL)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").touch()
    with pytest.raises(ValueError, match="is no export, so it is not replaced"):
        export(run, "safetensors", tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letters").exists()
    export(run, "safetensors", tmp_path / "out")
    (tmp_path / "out" / "old").touch()
    with pytest.raises(ValueError, match="give --overwrite"):
        export(run, "safetensors", tmp_path / "out")
    export(run, "safetensors", tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "encoder.json",
        "encoder.safetensors",
    ]


def test_a_library_that_is_missing_is_told(tmp_path, monkeypatch):
    def load(folder):
        import no_such_library  # noqa: F401

    monkeypatch.setitem(FORMS, "safetensors", replace(FORMS["safetensors"], load=load))
    exported = export(make_run(tmp_path / "run", "simclr", SMALL), "safetensors", tmp_path / "out")
    assert (exported.difference, exported.missing) == (None, "no_such_library")
    assert "It was not tried here" in (tmp_path / "out" / "README.md").read_text()


def test_a_library_that_writes_and_is_missing_is_told(tmp_path, monkeypatch):
    def write(trained, folder):
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setitem(FORMS, "onnx", replace(FORMS["onnx"], write=write))
    with pytest.raises(ValueError, match=r"--to onnx needs onnxscript: from the checkout, pip install -e '\.\[onnx\]'"):
        export(make_run(tmp_path / "run", "simclr", SMALL), "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
