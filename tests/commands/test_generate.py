"""``generate``: a file that is whole or absent, the same for the same seed, and every refusal before the loop."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taylorseer.bundle import Bundle
from taylorseer.runtime.generation import Generator, random_conditions
from taylorseer.runtime.latents import to_pixels

Run = Callable[..., Any]
Bundles = Callable[..., Bundle]

SHORT = ("--steps", 10, "--interval", 3, "--warmup-steps", 2, "--order", 1)


def pixels(path: pathlib.Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_a_seed_is_a_file(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    folder = bundles("dit-tiny").folder
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        outcome = run("generate", folder, "--prompt", "7", "--seed", seed, *SHORT, "--output", tmp_path / f"{name}.png")
        assert outcome.code == 0 and outcome.err == ""
        assert outcome.out.startswith(f"{tmp_path / name}.png: 1 image, ")
        assert outcome.out.endswith("4 of 10 steps full\n")
    a, b, c = (pixels(tmp_path / f"{name}.png") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


def test_prompts_share_a_picture_and_seeds_count_up(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    bundle = bundles("dit-tiny")
    latents = tmp_path / "new/folder/latents.npy"
    outcome = run("generate", bundle.folder, "--prompt", 1, "--prompt", 2, "--seed", 5, "--output", latents)
    assert outcome.code == 0
    generator = Generator(bundle)
    expected = [generator.generate("1", seed=5).latent, generator.generate("2", seed=6).latent]
    np.testing.assert_allclose(np.load(latents), np.concatenate(expected), rtol=1e-4, atol=1e-4)
    assert [path.name for path in latents.parent.iterdir()] == ["latents.npy"]


def test_every_step_full_forecasts_nothing(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    """Not even what this bundle could not forecast: an order above its own has no effect."""
    outcome = run(
        "generate", bundles("flux-emoji").folder, "--prompt", "rocket", "--every-step-full", "--steps", 4,
        "--order", 9, "--output", tmp_path / "x.png", "--scale", 2,
    )  # fmt: skip
    assert outcome.out.endswith("4 of 4 steps full\n")
    assert pixels(tmp_path / "x.png").shape[0] > 64


def test_conditions_from_a_file(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    bundle = bundles("flux-tiny")
    conditions: dict[str, Any] = random_conditions(bundle.manifest, 0)
    np.savez(tmp_path / "conditions.npz", **conditions)
    outcome = run(
        "generate", bundle.folder, "--conditions", tmp_path / "conditions.npz", *SHORT, "--output", tmp_path / "x.npy"
    )
    assert outcome.code == 0
    assert np.load(tmp_path / "x.npy").shape == (1, 48, 12)


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "other names": lambda good: {**good, "x": np.zeros(1)},
    "one left out": lambda good: {"encoder_hidden_states": good["encoder_hidden_states"]},
    "other dtype": lambda good: {name: value.astype(np.float64) for name, value in good.items()},
    "infinity": lambda good: {**good, "pooled_projections": np.full((1, 20), np.inf, np.float32)},
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "cannot be read: No such file or directory"),
        ("empty", "cannot be read: it is no .npz file. Save the inputs by name with np.savez"),
        ("text", "cannot be read: it is no .npz file. Save the inputs by name with np.savez"),
        ("truncated", "cannot be read: it is no .npz file. Save the inputs by name with np.savez"),
        ("pickle", "cannot be read: it is no .npz file. Save the inputs by name with np.savez"),
        ("npy", "holds one array without a name: save the inputs by name with np.savez"),
        ("other names", "The model has no input 'x'; it takes encoder_hidden_states, pooled_projections"),
        ("one left out", "The input 'pooled_projections' is missing: give an array of shape [1, 20]"),
        ("other dtype", "this bundle was built for float32"),
        ("infinity", "The input 'pooled_projections' holds NaN or infinity"),
    ],
)
def test_conditions_that_are_no_good(
    run: Run, bundles: Bundles, tmp_path: pathlib.Path, kind: str, message: str
) -> None:
    bundle, path = bundles("flux-tiny"), tmp_path / "conditions.npz"
    good = random_conditions(bundle.manifest, 0)
    if kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"PK no archive")
    elif kind == "npy":
        np.save(tmp_path / "x.npy", np.zeros(3))
        (tmp_path / "x.npy").rename(path)
    elif kind == "pickle":
        np.savez(path, x=np.array([{}], object))
    elif kind != "missing":
        np.savez(path, **CHANGES.get(kind, dict)(good))
        if kind == "truncated":
            path.write_bytes(path.read_bytes()[:400])
    output = tmp_path / "out.npy"
    assert run("generate", bundle.folder, "--conditions", path, "--output", output).refused(message)
    assert not output.exists()


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_an_output_that_cannot_be_written(run: Run, bundles: Bundles, tmp_path: pathlib.Path, suffix: str) -> None:
    (tmp_path / "file").write_text("kept")
    output = tmp_path / "file" / f"x{suffix}"  # below a file: fails for root too, unlike a folder without permission
    outcome = run("generate", bundles("dit-tiny").folder, "--prompt", 1, *SHORT, "--output", output)
    assert outcome.refused(str(output), "cannot be written", "another")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_an_output_that_failed_leaves_nothing(run: Run, bundles: Bundles, tmp_path: pathlib.Path, suffix: str) -> None:
    folder = tmp_path / f"x{suffix}"
    folder.mkdir()  # a folder has the name: what was written beside it must go again
    outcome = run("generate", bundles("dit-tiny").folder, "--prompt", 1, *SHORT, "--output", folder)
    assert outcome.refused("cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Give either --prompt (once or more) or --conditions"),
        (("--prompt", "1", "--conditions", "x.npz"), "Give either --prompt"),
        (("--prompt", "cat"), "dit-tiny takes a class number from 0 to 9, not 'cat'"),
        (("--prompt", "1", "--scale", 0), "--scale 0 is no enlargement"),
        (("--prompt", "1", "--output", "x.jpg"), "'x.jpg' is neither a picture nor latents: give --output FILE.png"),
        (("--prompt", "1", "--sheet"), "--sheet shows the frames of clips: leave it out for images"),
        (("--prompt", "1", "--frame-rate", 8), "--frame-rate is for clips in motion: leave it out for images"),
        (("--prompt", "1", "--guidance", "nan"), "The guidance is nan: give a finite number"),
        (("--prompt", "1", "--guidance", "inf"), "The guidance is inf: give a finite number"),
        (("--prompt", "1", "--seed", -1), "seed -1 is negative"),
        (("--prompt", "1", "--order", 3), "Order 3 needs 4 remembered tensors per feature, this bundle has 3"),
        (("--prompt", "1", "--order", -1), "The order is -1"),
        (("--prompt", "1", "--interval", 1), "Interval 1 makes every step full, so nothing is forecast"),
        (("--prompt", "1", "--steps", 5), "with 8 steps or fewer there is too little to forecast from"),
        (("--prompt", "1", "--steps", 0, "--every-step-full"), "steps = 0 is not supported"),
        (("--prompt", "1", "--preset", "fluks"), "no preset 'fluks'"),
    ],
)
def test_requests_that_do_not_fit(
    run: Run,
    bundles: Bundles,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("generate", bundles("dit-tiny").folder, *options).refused(message)
    assert list(tmp_path.iterdir()) == []


def test_newton_needs_history(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    output = ("--output", tmp_path / "x.png")
    history, derivatives = bundles("dit-tiny").folder, bundles("dit-tiny", "derivatives").folder
    newton = ("--prompt", 1, "--predictor", "newton", *SHORT)
    assert run("generate", history, *newton, *output).code == 0
    (tmp_path / "x.png").unlink()
    assert run("generate", derivatives, *newton, *output).refused("use the state layout 'history'")
    assert list(tmp_path.iterdir()) == []


def test_prompts_of_words(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    bundle, output = bundles("flux-emoji"), ("--output", tmp_path / "x.png")
    assert run("generate", bundle.folder, "--prompt", "red hearrt", *output).refused("'hearrt' (close: 'heart'")
    length = bundle.manifest.sizes["text_length"]
    long = " ".join(["red"] * (length + 1))
    assert run("generate", bundle.folder, "--prompt", long, *output).refused(f"{length + 1} words, but {length} fit")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def conditions(bundles: Bundles, tmp_path: pathlib.Path) -> tuple[object, ...]:
    """The bundle of clips and a request for one."""
    bundle = bundles("hunyuan-video-tiny")
    inputs: dict[str, Any] = random_conditions(bundle.manifest, 0)
    (tmp_path / "request").mkdir()
    np.savez(tmp_path / "request/conditions.npz", **inputs)
    return bundle.folder, "--conditions", tmp_path / "request/conditions.npz", *SHORT


def test_a_clip_is_a_moving_picture(
    run: Run, conditions: tuple[object, ...], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("generate", *conditions, "--scale", 2)
    assert outcome.code == 0 and outcome.out.startswith("out/clip.png: 1 clip, ")
    run("generate", *conditions, "--output", "latent.npy")
    frames = to_pixels(np.load("latent.npy")[0].transpose(1, 0, 2, 3))
    with Image.open("out/clip.png") as clip:
        assert (getattr(clip, "n_frames", 1), clip.info["loop"], clip.info["duration"]) == (3, 0, 125)
        for number, frame in enumerate(frames):
            clip.seek(number)
            margin = (clip.height - 16) // 2
            shown = np.asarray(clip.convert("RGB"))[margin : margin + 16, margin : margin + 24]
            np.testing.assert_array_equal(shown[::2, ::2], frame)


def test_a_clip_has_its_frame_rate(run: Run, conditions: tuple[object, ...], tmp_path: pathlib.Path) -> None:
    assert run("generate", *conditions, "--output", tmp_path / "x.gif", "--frame-rate", 20).code == 0
    with Image.open(tmp_path / "x.gif") as clip:
        assert (clip.format, clip.info["duration"]) == ("GIF", 50)


def test_a_sheet_has_a_row_for_each_clip(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    folder, sheet = bundles("hunyuan-video-emoji", "folded").folder, tmp_path / "x.png"
    prompts = ("--prompt", "red heart moving left", "--prompt", "pizza growing")
    outcome = run("generate", folder, *prompts, *SHORT, "--sheet", "--scale", 2, "--output", sheet)
    assert outcome.out.startswith(f"{sheet}: 2 clips, ")
    with Image.open(sheet) as image:
        assert getattr(image, "n_frames", 1) == 1
        assert image.width > 8 * 64 and 2 * 64 < image.height < 4 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "x.webm"), "'x.webm' is to be a clip: give it a name that ends with .png, .gif, .mp4"),
        (("--output", "x.gif", "--sheet"), "'x.gif' is neither a picture nor latents: give --output FILE.png"),
        (
            ("--output", "x.npy", "--sheet"),
            "--sheet shows the frames of clips: leave it out for images and for latents",
        ),
        (("--sheet", "--frame-rate", 3), "--frame-rate is for clips in motion: leave it out for images, for sheets"),
        (("--output", "x.npy", "--frame-rate", 3), "--frame-rate is for clips in motion"),
        (("--frame-rate", 0), "0 frames per second are no rate for a .png"),
        (("--output", "x.mp4"), "needs the program ffmpeg, which is not on the PATH: install it"),
    ],
)
def test_clips_that_cannot_be_written(
    run: Run,
    conditions: tuple[object, ...],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("generate", *conditions, *options).refused(message)
    assert [path.name for path in tmp_path.iterdir()] == ["request"]


def test_classes_by_name(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    folder = bundles("dit-emoji", "folded").folder
    for prompt in ("animal-mammal", "13"):
        latent = tmp_path / f"{prompt}.npy"
        outcome = run("generate", folder, "--prompt", prompt, "--every-step-full", "--steps", 2, "--output", latent)
        assert outcome.code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "animal-mammal.npy"), np.load(tmp_path / "13.npy"))
    refused = run("generate", folder, "--prompt", "animal-mamal", "--output", tmp_path / "x.npy")
    assert refused.refused("dit-emoji takes a class by name or by number", "close: 'animal-mammal'", "classes.json")


def test_latents_that_need_a_decoder_are_refused_as_pictures_before_the_loop(
    run: Run, copied: Callable[[str], pathlib.Path], tmp_path: pathlib.Path
) -> None:
    folder = copied("dit-tiny")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"decoder": "pixels"', '"decoder": "none"'))
    for output in ("x.png", "x.npy"):
        outcome = run("generate", folder, "--prompt", 1, *SHORT, "--output", tmp_path / output)
        if output == "x.png":
            assert outcome.refused("need its own decoder: give --output FILE.npy")
    assert not (tmp_path / "x.png").exists() and np.load(tmp_path / "x.npy").shape == (1, 3, 8, 8)
