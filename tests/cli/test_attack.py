"""``aigtool attack``, option by option."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

QUICK = ("--steps", "2", "--workers", "0", "--epsilons", "0,8/255")


def test_attacks_are_listed_without_a_model(aigtool: Command) -> None:
    shown = aigtool("attack", "--attack", "list").out
    for name in ("fgsm", "pgd", "noise", "foolbox:LinfPGD", "torchattacks:AutoAttack"):
        assert name in shown
    assert "needs trainloader" in shown


def test_everything_at_once(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    groups = tmp_path / "groups.yaml"
    groups.write_text("cold: [blue, green]\nwarm: [red]\n")
    options = ["--attack", "pgd,noise", "--gate-gradient", "straight-through,frozen,worst"]
    options += ["--attacker", "static,adaptive", "--jpeg", "50", "--groups", groups]
    options += ["--compute", "4/255", "--subset", "6", "--out", tmp_path / "out"]
    shown = aigtool("attack", model, "--data", image_folder, *QUICK, *options)
    for told in (
        *(
            "PGD-2, no defence",
            "PGD-2, JPEG 50, attacker unaware",
            "PGD-2, JPEG 50, attacker aware",
        ),
        *("noise, no defence", "Attacks on compute, 6 images", "Sanity checks, 6 images"),
        *("through", "frozen", "worst", "open"),
        *("decisions as on the clean image", "cold", "(8 images)"),
    ):
        assert told in shown.out
    assert "next: aigtool report" in shown.err
    told = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert {row["gate_gradient"] for row in told["rows"] if row["attack"] == "pgd"} == {
        *(None, "straight-through", "frozen", "worst")
    }
    assert [row["goal"] for row in told["compute"]] == ["raise", "lower"]
    # Untrained gates leave nothing to compare seconds with: the same weights serve both.
    assert "timed_images" not in told["compute"][0]
    assert "cold" in (tmp_path / "out" / "gates.csv").read_text()
    assert {row["group"] for row in told["groups"]} == {"all", "cold", "warm"}
    pgd = {"name": "pgd", "norm": "linf", "steps": 2, "step_size": None, "restarts": 0}
    assert pgd in told["attacks"]


@pytest.mark.usefixtures("unrendered")
def test_what_an_earlier_run_left_is_deleted(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    command = ["attack", model, "--data", image_folder, "--out", tmp_path / "out"]
    aigtool(*command, *QUICK, "--save-images", "--subset", "2", "--limit", "4")
    few = ["--epsilons", "0,4/255", "--limit", "3", "--compute", "none", "--steps", "1"]
    aigtool(*command, *few, "--workers", "0", "--force", "--save-images", "--subset", "1")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    tables = {"attack.csv", "gates.csv", "attack.json"}
    assert names == tables | {"attack.png", "execution.png", "examples.png", "images"}
    saved = [*(tmp_path / "out" / "images").rglob("*.png")]
    assert len(saved) == 2 * 3 + 3
    assert {path.parent.parent.name for path in saved} == {"4of255", "clean"}
    mine = [tmp_path / "out" / "images" / name for name in ("mine.png", "a/000001-b.png")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    aigtool(*command, *few, "--workers", "0", "--force", "--subset", "1")
    assert {*(tmp_path / "out" / "images").rglob("*.png")} == {*mine}


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_an_attack_by_l2_is_checked_by_l2(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    options = ["--attack", "torchattacks:PGDL2", "--epsilons", "0,3", "--jpeg", "none"]
    options += ["--steps", "1", "--workers", "0", "--out", tmp_path / "out"]
    told = aigtool("attack", model, "--data", image_folder, *options, "--json")
    assert told["norm"] == "l2"
    assert told["compute"] == []


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_noise_knows_of_no_defence(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    options = ["--attack", "noise", "--attacker", "adaptive", "--compute", "none", "--subset", "2"]
    out = ["--out", tmp_path / "out"]
    told = aigtool("attack", model, "--data", image_folder, *QUICK, *options, *out, "--json")
    assert {row["attacker"] for row in told["rows"]} == {None, "static"}


@pytest.mark.usefixtures("unrendered")
def test_a_network_without_gates(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    dense = tmp_path / "dense.safetensors"
    aigtool("convert", model, "--strip", "--out", dense)
    told = aigtool("attack", dense, "--data", image_folder, *QUICK, "--jpeg", "none", "--json")
    assert {row["network"] for row in told["rows"]} == {"dense"}
    assert {row["defense"] for row in told["rows"]} == {"none"}
    assert told["compute"] == []
    assert told["jpeg"] is None
    assert {check["network"] for check in told["checks"]} == {"dense"}
    folder = dense.with_name("dense-attack")
    names = {"attack.csv", "attack.json", "attack.png", "examples.png"}
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.usefixtures("unrendered")
def test_saved_images_are_what_was_judged(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    """Their folder is a data set: evaluated, as many are right; beside the clean, they pair."""
    options = ["--attack", "pgd", "--jpeg", "none", "--compute", "none", "--save-images"]
    out = tmp_path / "out"
    told = aigtool(
        *("attack", model, "--data", image_folder, *QUICK, *options, "--out", out, "--json")
    )
    assert told["eight_bit"] is True
    for row in told["rows"]:
        if row["epsilon"] and row["network"] == "gated":
            folder = out / "images" / "gated" / f"{row['attack']}-straight-through" / "8of255"
            again = aigtool("evaluate", model, "--data", folder, "--workers", "0", "--json")
            assert (again["correct"], again["images"]) == (row["correct"], 12)
    assert (out / "images" / "open" / "pgd" / "8of255" / "red").is_dir()
    traces = {"clean": out / "images" / "clean", "attacked": folder}
    for name, images in traces.items():
        trace = ["--out", tmp_path / f"{name}.parquet"]
        aigtool("evaluate", model, "--data", images, "--workers", "0", "--quiet", *trace)
    paths = [tmp_path / f"{name}.parquet" for name in traces]
    beside = aigtool("analyze", *paths, "--out", tmp_path / "beside", "--format", "png", "--json")
    assert beside["rows"][1]["difference"] is not None
    assert beside["rows"][1]["gate_agreement"] is not None


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("target", ["red", "least-likely"])
def test_a_target(
    target: str, aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    options = ["--target", target, "--compute", "none", "--norm", "l2", "--restarts", "1"]
    options += ["--attack", "pgd", "--out", tmp_path / "out", "--epsilons", "0,3"]
    told = aigtool("attack", model, "--data", image_folder, *QUICK, *options, "--json")
    assert told["target"] in (2, "least-likely")
    assert {row["norm"] for row in told["rows"]} == {"l2"}
    assert all(row["hits"] <= row["aimed"] <= row["images"] for row in told["rows"])


@pytest.mark.usefixtures("unrendered")
def test_only_clean_images(
    aigtool: Command, model: Path, image_folder: Path, tmp_path: Path
) -> None:
    """There is nothing to check, and no attacked image to draw."""
    options = ["--epsilons", "0", "--compute", "none", "--out", tmp_path / "out", "--workers", "0"]
    told = aigtool("attack", model, "--data", image_folder, *options, "--json")
    assert told["checks"] == []
    names = {"attack.csv", "gates.csv", "attack.json", "attack.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
