"""How other libraries load what was exported. Each function stands in the README beside the weights, as it is here: so
it imports nothing of ours. All return a function of pixels (B, 3, S, S) in [0, 1] → embeddings (B, dim)."""

# mypy: disable-error-code="no-untyped-def"


def load_safetensors(folder):
    import json
    from pathlib import Path

    import timm
    import torch
    from safetensors.torch import load_file

    config = json.loads(Path(folder, "encoder.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=0, **config["arguments"])
    if stem := config["stem"]:  # 3×3 in place of a ResNet's 7×7, for small images
        width = model.conv1.out_channels
        model.conv1 = torch.nn.Conv2d(3, width, kernel_size=3, stride=stem["stride"], padding=1, bias=False)
        model.maxpool = model.maxpool if stem["pool"] else torch.nn.Identity()
    model.load_state_dict(load_file(Path(folder, "encoder.safetensors")))
    model.eval()
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return lambda pixels: model((pixels - mean) / std)


def load_timm(folder):
    import timm
    import torch

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return lambda pixels: model((pixels - mean) / std)


def load_hf(folder):
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    mean, std = (torch.tensor(model.config.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return lambda pixels: model((pixels - mean) / std).pooler_output


def load_torchvision(folder):
    import json
    from pathlib import Path

    import torch
    import torchvision
    from safetensors.torch import load_file

    config = json.loads(Path(folder, "encoder.json").read_text())
    model = getattr(torchvision.models, config["model"])(**config["arguments"])
    setattr(model, config["head"], torch.nn.Identity())
    model.load_state_dict(load_file(Path(folder, "encoder.safetensors")))
    model.eval()
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return lambda pixels: model((pixels - mean) / std)


def load_open_clip(folder):
    import open_clip
    import torch

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    mean, std = (torch.tensor(model.visual.preprocess_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return lambda pixels: model.encode_image((pixels - mean) / std, normalize=True)


def load_onnx(folder):
    from pathlib import Path

    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(Path(folder, "encoder.onnx"))
    return lambda pixels: torch.from_numpy(session.run(["embeddings"], {"pixels": pixels.numpy()})[0])


def load_torch_export(folder):
    from pathlib import Path

    import torch

    return torch.export.load(Path(folder, "encoder.pt2")).module()
