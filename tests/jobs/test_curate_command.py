"""`feral curate` as a person sees it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.cluster
def test_it_ends_with_what_happened_and_what_comes_next(ray_local: Any, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "source" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"source/class{number % 2}/{number}.png").write_bytes(picture(min(number, 18)))
    (tmp_path / "source/class0/x\x1b[2J.jpg").write_text("<html>")
    (tmp_path / "source/bad.tar").write_bytes(b"x" * 2000)
    arguments = ["curate", str(tmp_path / "source"), "--to", str(tmp_path / "store"), "--side", "16"]
    first, second = CliRunner().invoke(app, arguments), CliRunner().invoke(app, arguments)
    assert first.exit_code == second.exit_code == 0, first.output
    for line in (
        "22 seen = 19 kept + 3 refused",
        "1 dup_exact, such as class1/19.png: same picture as class0/18.png",
        "1 format_forbidden, such as class0/x\\x1b[2J.jpg: not JPEG",
        "2 classes, 0 pictures with captions",
        "damaged: bad.tar: 0 samples saved",
        "images/s",
        f"next: feral pretrain RECIPE data.store={tmp_path / 'store'}",
    ):
        assert line in first.output
    assert "nothing to do" in second.output


def test_a_wrong_source_is_a_message_and_starts_no_ray(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["curate", str(tmp_path / "nowhere"), "--to", str(tmp_path / "store")])
    assert isinstance(result.exception, ValueError)
    assert "no source at" in str(result.exception)
    assert not (tmp_path / "store").exists()
