"""What a user gets wrong is one line, exit code 2, no traceback, and nothing written."""

import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from aigtool.cli.main import run
from aigtool.conversion import convert
from aigtool.models.description import Description, InputSpec
from aigtool.models.files import save_model
from aigtool.models.zoo import create_network


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.fixture
def workplace(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of everything that can be wrong."""
    monkeypatch.chdir(image_folder.parent)
    network = create_network("cifar_resnet20", num_classes=3)
    names = ("blue", "green", "red")
    spec = InputSpec.of(network)
    torch.save(network.state_dict(), "three.th")
    save_model("dense.st", network, Description("cifar_resnet20", 3, names, spec))
    save_model("m.safetensors", convert(network), Description("cifar_resnet20", 3, names, spec))
    ten = Description("cifar_resnet20", 10, None, spec)
    save_model("ten.st", create_network("cifar_resnet20"), ten)
    Path("empty.th").touch()
    Path("text.th").write_text("no checkpoint")
    Path("code.th").write_bytes(pickle.dumps(Malicious()))
    torch.save(create_network("cifar_resnet32").state_dict(), "r32.th")
    Path("cut.th").write_bytes(Path("three.th").read_bytes()[:-5000])
    Path("e.onnx").write_text("no model")
    Path("e.pt2").write_text("no program")
    Path("e.parquet").write_text("no trace")
    Path("nothing").mkdir()
    for folder in ("one/only", "others/cat", "others/dog", "broken/blue", "broken/red"):
        Path(folder).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(f"{folder}/a.png")
    Path("broken/red/b.png").write_bytes(b"no image")
    shutil.copytree("images", "unvalidated")
    shutil.rmtree("unvalidated/val")
    Path("run").mkdir()
    shutil.copy("m.safetensors", "run/best.st")
    Path("taken").mkdir()
    Path("taken/file").touch()
    os.mkfifo("pipe")
    return image_folder.parent


EVALUATE = ["evaluate", "m.safetensors", "--workers", "0", "--data"]
CALIBRATE = ["calibrate", "m.safetensors", "--workers", "0", "--data", "images"]
FINETUNE = ["finetune", "m.safetensors", "--data", "images", "--workers", "0"]
SWEEP = ["sweep", "m.safetensors", "--data", "images"]
ANALYZE = ["analyze", "m.safetensors", "--data", "images", "--workers", "0"]
ATTACK = ["attack", "m.safetensors", "--data", "images", "--out", "out"]
PREDICT = ["predict", "m.safetensors", "--workers", "1"]
CIFAR20 = ["convert", "cifar_resnet20", "--out", "out.safetensors"]

CASES = {
    "unknown network": (["convert", "resnet5O"], "did you mean resnet50"),
    "missing weights": ([*CIFAR20, "--weights", "no.th"], "no such file"),
    "empty weights": ([*CIFAR20, "--weights", "empty.th"], "empty"),
    "no checkpoint": ([*CIFAR20, "--weights", "text.th"], "no checkpoint"),
    "code": ([*CIFAR20, "--weights", "code.th"], "could run code"),
    "other architecture": (
        [*CIFAR20, "--weights", "r32.th"],
        "unexpected: layer1.3.conv1.weight, ",
    ),
    "weights of other classes": (
        [*CIFAR20, "--weights", "three.th"],
        "3 classes, the network for 10: pass --num-classes 3",
    ),
    "cut weights": ([*CIFAR20, "--weights", "cut.th"], "cut short"),
    "ema without weights": ([*CIFAR20, "--use-ema"], "without --weights"),
    "no ema": ([*CIFAR20, "--weights", "three.th", "--use-ema"], "no averaged weights"),
    "nothing published": ([*CIFAR20, "--pretrained"], "no published weights"),
    "no network connection": (
        ["convert", "resnet18", "--pretrained", "--out", "out.safetensors"],
        "fetch them elsewhere and give the file with --weights",
    ),
    "no such hub entry": (
        ["convert", "hf-hub:timm/zzz", "--out", "o.safetensors"],
        "give its folder as local-dir:FOLDER",
    ),
    "no such folder": (
        ["convert", "local-dir:zzz", "--out", "o.safetensors"],
        "could not be built",
    ),
    "no such library": (["convert", "keras:resnet50"], "'keras' is no library"),
    "no such tag": (["convert", "resnet50.zzz", "--pretrained"], "no weights 'zzz'"),
    "unknown tag": (["convert", "resnet50.zzz"], "no weights 'zzz' of resnet50: expected a1_in1k"),
    "ungated nothing": ([*CIFAR20, "--ungated", "layer9.*"], "matches no block"),
    "ungated too many": ([*CIFAR20, "--ungated", "first:10"], "from 1 to 9"),
    "ungated all": ([*CIFAR20, "--ungated", "last:9"], "no block is left to gate"),
    "targets too few": ([*CIFAR20, "--targets", "0.5,1"], "targets given: 2; residual blocks: 9"),
    "targets of another network": ([*CIFAR20, "--targets", "resnet50-eccv"], "targets given: 16"),
    "targets no numbers": ([*CIFAR20, "--targets", "a,b"], "target 'a': expected rates"),
    "target over 1": ([*CIFAR20, "--targets", "resnet50-eccv:7"], "target 7"),
    "strip with weights": (
        ["convert", "m.safetensors", "--strip", "--weights", "r32.th"],
        "--weights was given with --strip",
    ),
    "a file for a name": (["convert", "m.safetensors"], "is a file: expected a network's name"),
    "gated weights": ([*CIFAR20, "--weights", "m.safetensors"], "--strip` takes the gates out"),
    "strip and width": (["convert", "m.safetensors", "--strip", "--gate-width", "8"], "one of the"),
    "strip without gates": (["convert", "dense.st", "--strip"], "nothing to strip"),
    "strip a name": (["convert", "resnet18", "--strip"], "no such file"),
    "no residual block": (["convert", "vgg11", "--out", "o.safetensors"], "looked for a module"),
    "no tag of a model": (["models", "resnet18.a1_in1k"], "did you mean resnet18,"),
    "weights twice": ([*CIFAR20, "--weights", "r32.th", "--pretrained"], "expected one of them"),
    "no classes": ([*CIFAR20, "--num-classes", "0"], "--num-classes"),
    "no gate width": ([*CIFAR20, "--gate-width", "0"], "--gate-width"),
    "output exists": (["convert", "cifar_resnet20", "--out", "text.th"], "--force"),
    "output not writable": (
        ["convert", "cifar_resnet20", "--out", "/proc/a.st"],
        "cannot be written",
    ),
    "output of another name": ([*CIFAR20[:-1], "out.pth"], "that ends in .safetensors"),
    "dense of another name": (["convert", "m.safetensors", "--strip", "-o", "d.pth"], "ends in"),
    "output is a pipe": ([*CIFAR20[:-1], "pipe", "--force"], "is a device, pipe or socket"),
    "output in a file": (
        ["convert", "cifar_resnet20", "--out", "text.th/a.st"],
        "cannot be written",
    ),
    "no model": (["models", "zzz*"], "without a pattern all are listed"),
    "no budget": ([*CALIBRATE], "expected one of --target-flops and --target-rate"),
    "two budgets": ([*CALIBRATE, "--target-flops", ".5", "--target-rate", ".5"], "expected one of"),
    "budget no number": ([*CALIBRATE, "--target-flops", "0.5,x"], "budget '0.5,x'"),
    "budget twice": ([*CALIBRATE, "--target-flops", "0.5,0.50"], "expected each number once"),
    "budget over 1": ([*CALIBRATE, "--target-flops", "60"], "target flops 60: expected a number"),
    "budget out of reach": ([*CALIBRATE, "--target-flops", "0.01"], "lowest that can be reached"),
    "budgets exist": ([*CALIBRATE, "--target-rate", ".5,.6", "--out", "text.th"], "cannot be"),
    "calibrate without gates": (
        ["calibrate", "dense.st", "--data", "images", "--target-rate", "0.5"],
        "the network has no gates",
    ),
    "nothing to choose by": (
        ["calibrate", "m.safetensors", "--data", "unvalidated", "--target-rate", "0.5"],
        "has no val/: name with --split",
    ),
    "missing model": (["info", "no.safetensors"], "aigtool convert"),
    "model is no model": (["flops", "text.th"], "not a whole .safetensors"),
    "missing data": ([*EVALUATE, "no-folder"], "no such folder"),
    "empty data": ([*EVALUATE, "nothing"], "has no images"),
    "one class": ([*EVALUATE, "one"], "one class, 'only'"),
    "other classes": ([*EVALUATE, "others"], "cat, dog"),
    "missing split": ([*EVALUATE, "images", "--split", "holdout"], "test, train, val"),
    "unreadable image": ([*EVALUATE, "broken"], "b.png cannot be read"),
    "unreadable, in workers": (
        ["evaluate", "m.safetensors", "--workers", "2", "--data", "broken"],
        "b.png cannot be read",
    ),
    "missing class map": ([*EVALUATE, "images", "--class-map", "no.txt"], "class map no.txt"),
    "unknown policy": ([*EVALUATE, "images", "--policy", "always"], "--policy"),
    "missing dense": ([*EVALUATE, "images", "--dense", "no.st"], "no such file"),
    "no batch": ([*EVALUATE, "images", "--batch-size", "0"], "--batch-size"),
    "no limit": ([*EVALUATE, "images", "--limit", "0"], "--limit"),
    "no workers": ([*EVALUATE, "images", "--workers", "-1"], "--workers"),
    "unknown device": ([*EVALUATE, "images", "--device", "tpu9"], "expected auto, cpu, cuda"),
    "trace exists": ([*EVALUATE, "images", "--out", "text.th"], "--force"),
    "trace of another name": ([*EVALUATE, "images", "--out", "t.csv"], ".parquet"),
    "trace is a folder": ([*EVALUATE, "images", "--out", "nothing"], "is a folder"),
    "model is a folder": (["convert", "cifar_resnet20", "--out", "nothing"], "is a folder"),
    "folder is a file": ([*FINETUNE, "--out", "text.th", "--force"], "is a file"),
    "second-order optimiser": (
        [*FINETUNE, "--opt", "adahessian", "--lr", "1e-3"],
        "second derivatives",
    ),
    "dense of other classes": ([*FINETUNE, "--dense", "ten.st"], "other classes"),
    "class names too few": ([*CIFAR20, "--class-names", "text.th"], "1 names"),
    "no data": (["evaluate", "m.safetensors"], "--data"),
    "pattern per layer": (
        [*FINETUNE, "--gate-start", "pattern", "--target", "per-layer"],
        "gate start pattern with targets per layer",
    ),
    "rate of 0": ([*FINETUNE, "--target-rate", "0"], "target rate 0"),
    "rate over 1": ([*FINETUNE, "--target-rate", "1.2"], "target rate 1.2"),
    "rate no number": ([*FINETUNE, "--target-rate", "abc"], "abc"),
    "unknown target": ([*FINETUNE, "--target", "block"], "--target"),
    "two targets": ([*FINETUNE, "--target-rate", ".5", "--target-flops", ".5"], "expected one of"),
    "flops over 1": ([*FINETUNE, "--target-flops", "60"], "target flops 60: expected a number"),
    "flops out of reach": ([*FINETUNE, "--target-flops", "0.01"], "lowest that can be reached"),
    "flops per layer": (
        [*FINETUNE, "--target-flops", "0.5", "--target", "per-layer"],
        "layers are held to rates",
    ),
    "train nothing": ([*FINETUNE, "--train", "none"], "--train"),
    "norms of nothing": ([*FINETUNE, "--norm-statistics", "running"], "--norm-statistics"),
    "negative clip": ([*FINETUNE, "--clip-grad", "-1"], "clip grad -1"),
    "smoothing over 1": ([*FINETUNE, "--smoothing", "2"], "smoothing 2: expected 0 to 1"),
    "no temperature": ([*FINETUNE, "--distill-temperature", "0"], "temperature 0: expected"),
    "no look at an image": ([*FINETUNE, "--aug-repeats", "0"], "aug repeats 0: expected a whole"),
    "no accumulation": ([*FINETUNE, "--grad-accum-steps", "0"], "grad accum steps 0: expected"),
    "negative information": ([*FINETUNE, "--information", "-1"], "information -1"),
    "too much information": (
        [*FINETUNE, "--least-information", "0.7"],
        "least information 0.7: expected 0 to ln 2, 0.693",
    ),
    "more than all informed": ([*FINETUNE, "--informed-share", "2"], "informed share 2: expected"),
    "negative certainty": ([*FINETUNE, "--certainty", "-1"], "certainty -1"),
    "gates never settle": ([*FINETUNE, "--gate-settle", "0"], "gate settle 0: expected above 0"),
    "gates settle after the run": ([*FINETUNE, "--gate-settle", "2"], "gate settle 2: expected"),
    "negative band": ([*FINETUNE, "--band", "-1"], "band -1"),
    "nothing to train": (
        ["finetune", "--data", "images"],
        "expected MODEL and --data, or --resume",
    ),
    "no data to train on": (["finetune", "m.safetensors"], "expected MODEL and --data"),
    "no run to resume": (["finetune", "--resume", "taken"], "no run there"),
    "no epochs": ([*FINETUNE, "--epochs", "0"], "epochs 0: expected"),
    "no training batch": ([*FINETUNE, "--batch-size", "0"], "--batch-size"),
    "negative lr": ([*FINETUNE, "--lr", "-1"], "lr -1"),
    "unknown optimiser": ([*FINETUNE, "--opt", "zzz"], "names that timm knows"),
    "unknown schedule": ([*FINETUNE, "--sched", "zzz"], "names that timm knows"),
    "nothing to validate on": ([*FINETUNE, "--val-fraction", "0"], "validation fraction 0"),
    "hflip over 1": ([*FINETUNE, "--hflip", "2"], "hflip 2: expected 0 to 1"),
    "jitter over 1": ([*FINETUNE, "--color-jitter", "9"], "color jitter 9: expected 0 to 1"),
    "jitter beside a policy": (
        [*FINETUNE, "--color-jitter", "0.2", "--aa", "rand-m9"],
        "color jitter 0.2 and aa rand-m9: expected one of them",
    ),
    "unknown policy of aa": ([*FINETUNE, "--aa", "zzz"], "a policy that timm knows"),
    "erasing over 1": ([*FINETUNE, "--reprob", "2"], "reprob 2: expected 0 to 1"),
    "negative mixup": ([*FINETUNE, "--mixup", "-1"], "mixup -1: expected 0 or more"),
    "negative cutmix": ([*FINETUNE, "--cutmix", "-1"], "cutmix -1: expected 0 or more"),
    "decay of 1": ([*FINETUNE, "--model-ema-decay", "1"], "model ema decay 1: expected"),
    "unknown dtype": ([*FINETUNE, "--amp-dtype", "int8"], "--amp-dtype"),
    "unknown baseline": ([*FINETUNE, "--baseline", "zzz"], "--baseline"),
    "baseline of gates": (
        [*FINETUNE, "--baseline", "stochastic-depth", "--train", "gates"],
        "has no gates: expected train all",
    ),
    "no gate temperature": ([*FINETUNE, "--gate-temperature", "0"], "gate temperature 0: expected"),
    "targets too few to train": ([*FINETUNE, "--targets", "0.5,0.5"], "targets given: 2; gates: 9"),
    "targets over 1": ([*FINETUNE, "--targets", "0.5,1.5"], "target 1.5: expected a rate"),
    "targets and flops": (
        [*FINETUNE, "--targets", "0.5", "--target-flops", "0.5"],
        "layers are held to rates",
    ),
    "targets and rate": (
        [*FINETUNE, "--targets", "0.5", "--target-rate", "0.5"],
        "a target rate and targets were given",
    ),
    "baseline per layer": (
        [*FINETUNE, "--baseline", "stochastic-depth", "--target", "per-layer"],
        "all its blocks run at one rate",
    ),
    "norms of gates": (
        [*FINETUNE, "--train", "gates", "--norm-statistics", "batch"],
        "keeps its own",
    ),
    "optimiser without rate": ([*FINETUNE, "--opt", "lion"], "give --lr"),
    "schedule of accuracies": ([*FINETUNE, "--sched", "plateau"], "'plateau' cannot be made"),
    "all warm-up": (
        [*FINETUNE, "--epochs", "2", "--warmup-epochs", "2"],
        "warmup epochs 2, epochs 2: expected fewer for warm-up than in all",
    ),
    "out of its own model": (
        ["finetune", "run/best.st", "--data", "images", "--out", "run", "--force"],
        "holds run/best.st",
    ),
    "out of its own dense network": (
        [*FINETUNE, "--dense", "run/best.st", "--out", "run", "--force"],
        "holds run/best.st",
    ),
    "nothing to sweep": (SWEEP, "expected one of --target-flops and --target-rate"),
    "sweep no number": ([*SWEEP, "--target-flops", "0.5,x"], "budget '0.5,x'"),
    "sweep out of reach": ([*SWEEP, "--target-flops", "0.5,0.01"], "lowest that can be reached"),
    "sweep of layers' targets": (
        [*SWEEP, "--target-flops", "0.5", "--target", "per-layer"],
        "a target per layer with a target in FLOPs",
    ),
    "sweep with one target a layer": (
        [*SWEEP, "--target-rate", "0.5", "--targets", "0.5"],
        "--targets",
    ),
    "noise that ends before it falls": (
        [*FINETUNE, "--noise-end", "0.04"],
        "noise hold 0.05: expected at most noise end 0.04",
    ),
    "more repeats than a minibatch": (
        [*FINETUNE, "--batch-size", "8", "--aug-repeats", "9"],
        "aug repeats 9: expected at most the batch size, 8",
    ),
    "lookahead without a rate": ([*FINETUNE, "--opt", "lookahead_lion"], "give --lr"),
    "unknown engine": (["bench", "m.safetensors", "--engine", "fast"], "engine 'fast': expected"),
    "unknown type": (
        ["bench", "m.safetensors", "--dtype", "int8"],
        "dtype 'int8': expected some of",
    ),
    "batch of none": (["bench", "m.safetensors", "--batch-size", "0"], "batch-size '0': expected"),
    "no threads": (["bench", "m.safetensors", "--threads", "0"], "threads '0': expected"),
    "simulated rate over 1": (
        ["bench", "m.safetensors", "--simulate-rate", "2"],
        "numbers from 0 to 1",
    ),
    "simulated rate no number": (
        ["bench", "m.safetensors", "--simulate-rate", "x"],
        "numbers from 0 to 1",
    ),
    "rate of images": (
        ["bench", "m.safetensors", "--data", "images", "--simulate-rate", "0.5"],
        "expected one of the two",
    ),
    "bench of images by name": (["bench", "cifar_resnet20", "--data", "images"], "random weights"),
    "bench without gates": (["bench", "dense.st"], "has no gates"),
    "bench of no network": (["bench", "resnet5O"], "did you mean resnet50"),
    "bench on no device": (
        ["bench", "m.safetensors", "--device", "tpu"],
        "expected auto, cpu, cuda",
    ),
    "bench of a folder": (["bench", "run"], "model file run: no such file"),
    "bench with no seed": (["bench", "m.safetensors", "--seed", "-1"], "--seed"),
    "bench onnx in half precision": (
        ["bench", "m.safetensors", "--engine", "skip,onnx", "--dtype", "float32,bfloat16"],
        "engine onnx on cpu with bfloat16",
    ),
    "export a folder": (["export", "."], "model file .: no such file"),
    "bench of an exported file": (["bench", "e.onnx"], "it is an exported file"),
    "evaluate an exported file": (
        ["evaluate", "e.onnx", "--data", "images"],
        "it is an exported file",
    ),
    "export to another kind": (
        ["export", "m.safetensors", "--out", "m.pb"],
        "expected a name that ends in .onnx",
    ),
    "unknown format": (["export", "m.safetensors", "--format", "tf"], "--format"),
    "predict without images": (PREDICT, "IMAGES"),
    "predict with a wrong engine": ([*PREDICT, "a.png", "--engine", "fast"], "--engine"),
    "predict a model file with onnx": (
        [*PREDICT, "a.png", "--engine", "onnx"],
        "engine onnx runs an exported file",
    ),
    "predict a program": (["predict", "e.pt2", "a.png"], "which torch.export.load opens"),
    "predict an exported file with skip": (
        ["predict", "e.onnx", "a.png", "--engine", "skip"],
        "engine skip runs a model file",
    ),
    "predict an exported file on a GPU": (
        ["predict", "e.onnx", "a.png", "--device", "cuda"],
        "an exported file runs on the cpu",
    ),
    "predict no exported file": (["predict", "e.onnx", "a.png"], "cannot be opened"),
    "predict no pattern": ([*PREDICT, "*.gif"], "no file matches *.gif"),
    "predict an empty folder": ([*PREDICT, "nothing"], "folder nothing has no images"),
    "predict a missing image": ([*PREDICT, "a.png"], "images that could not be read: 1"),
    "seed twice": ([*SWEEP, "--target-flops", "0.5", "--seeds", "1,1"], "seeds '1,1'"),
    "seed out of range": ([*SWEEP, "--target-flops", "0.5", "--seeds", "4294967296"], "seeds"),
    "negative seed": ([*FINETUNE, "--seed", "-1"], "seed -1"),
    "seed no number": ([*SWEEP, "--target-flops", "0.5", "--seeds", "a"], "seeds 'a'"),
    "sweep into another folder": (
        [*SWEEP, "--target-flops", "0.5", "--out", "images"],
        "output images holds other things than runs",
    ),
    "compare with nothing": (
        [*SWEEP, "--target-flops", "0.5", "--compare", "no.st"],
        "model file no.st: no such file",
    ),
    "compare with other classes": (
        [*SWEEP, "--target-flops", "0.5", "--compare", "ten.st"],
        "other classes",
    ),
    "sweep bad split": (
        [*SWEEP, "--target-flops", "0.5", "--split", "none"],
        "split 'none' is not in",
    ),
    "run exists": ([*FINETUNE, "--out", "taken"], "--force"),
    "no gates": (["finetune", "dense.st", "--data", "images"], "has no gates"),
    "report of nothing": (["report", "nothing"], "nothing there that a page is made of"),
    "report of what is not there": (["report", "zzz"], "no such file or folder"),
    "report of no trace": (["report", "e.parquet"], "no whole execution trace"),
    "report of another file": (["report", "m.safetensors"], "nothing there that a page"),
    "report over a file": (["report", "nothing", "--out", "taken/file"], "exists: choose another"),
    "report of another kind": (["report", "nothing", "--out", "a.pdf"], "ends in .html"),
    "analyze without data": (["analyze", "m.safetensors"], "give --data"),
    "analyze image and data": ([*ANALYZE, "--image", "one/only/a.png"], "and the image alone"),
    "analyze image and trace": (
        ["analyze", "t.parquet", "--image", "one/only/a.png"],
        "with a trace: expected one model file",
    ),
    "analyze several and groups": (
        ["analyze", "a.parquet", "b.parquet", "--groups", "cifar10"],
        "expected one model file or trace",
    ),
    "analyze several without data": (["analyze", "a.parquet", "m.safetensors"], "give --data"),
    "analyze one twice": (
        ["analyze", "a.parquet", "a.parquet"],
        "expected different model files and traces",
    ),
    "analyze trace and policy": (
        ["analyze", "t.parquet", "--policy", "open"],
        "--policy, --limit and --split with a trace",
    ),
    "analyze trace and limit": (["analyze", "t.parquet", "--limit", "3"], "leave them out"),
    "analyze a folder as image": (
        ["analyze", "m.safetensors", "--image", "images"],
        "images cannot be read (a folder)",
    ),
    "evaluate a trace": (
        ["evaluate", "e.parquet", "--data", "images"],
        "it is a trace, which analyze takes",
    ),
    "predict nothing": (
        [*PREDICT, "no.png"],
        "images that could not be read: 1, and there were no others",
    ),
    "analyze no image": (
        ["analyze", "m.safetensors", "--image", "no.png"],
        "no.png cannot be read",
    ),
    "analyze one image of no gates": (
        ["analyze", "dense.st", "--image", "one/only/a.png"],
        "no gates to analyse",
    ),
    "analyze no trace": (["analyze", "t.parquet"], "no such file"),
    "analyze without gates": (["analyze", "dense.st", "--data", "images"], "no gates"),
    "analyze no format": ([*ANALYZE, "--format", "bmp"], "format 'bmp': expected some of png, svg"),
    "analyze no groups": ([*ANALYZE, "--groups", "no.yaml"], "no such file; expected a YAML file"),
    "analyze other groups": ([*ANALYZE, "--groups", "cifar10"], "no class named bird, cat, deer"),
    "analyze one cluster": ([*ANALYZE, "--clusters", "1"], "--clusters 1"),
    "analyze many clusters": ([*ANALYZE, "--clusters", "3"], "3 groups of 3 classes: expected 2"),
    "negative epsilon": ([*ATTACK, "--epsilons", "-0.1"], "epsilon -0.1"),
    "epsilon over 1": ([*ATTACK, "--epsilons", "0,8"], "did you mean 8/255"),
    "epsilon no number": ([*ATTACK, "--epsilons", "1/0"], "epsilon '1/0'"),
    "quality 0": ([*ATTACK, "--jpeg", "0"], "JPEG quality '0'"),
    "unknown option": (["convert", "resnet18", "--gate-widht", "3"], "--gate-widht"),
    "unknown command": (["transmogrify"], "transmogrify"),
}


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES)
def test_one_line_and_nothing_written(
    arguments: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("*")}
    code = run(arguments)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert captured.err.splitlines()[-1] == lines[0]
    assert message in lines[0]
    assert "Traceback" not in captured.err
    assert captured.out == ""
    after = {path: path.stat().st_mtime_ns for path in workplace.rglob("*")}
    assert after == before


@pytest.mark.usefixtures("workplace")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_no_gpu(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*EVALUATE, "images", "--device", device]) == 2
    assert "0 CUDA GPUs are usable here" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (["export", "m.safetensors", "--no-check"], "onnx"),
        (["export", "m.safetensors", "--no-check"], "onnxscript"),
        (["export", "m.safetensors"], "onnxruntime"),
        (["bench", "m.safetensors", "--engine", "onnx", "--patterns", "1"], "onnxruntime"),
        (["predict", "e.onnx", "images/test/red"], "onnxruntime"),
    ],
)
def test_a_package_that_is_not_installed_names_the_extra(
    arguments: list[str],
    package: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    before = {*Path().rglob("*")}
    assert run(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert package in last
    assert "pip install 'aigtool[onnx]'" in last
    assert {*Path().rglob("*")} == before


@pytest.mark.usefixtures("workplace")
def test_a_loss_that_is_not_finite_is_exit_code_3(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*FINETUNE, "--lr", "1e30", "--epochs", "1", "--batch-size", "4"]) == 3
    assert "epoch 1, step" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_ctrl_c_is_exit_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aigtool.cli.opening.collect_trace", interrupt)
    assert run([*EVALUATE, "images"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: interrupted")


@pytest.mark.usefixtures("workplace")
def test_a_defect_of_ours_shows_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("aigtool.cli.opening.collect_trace", fail)
    with pytest.raises(RuntimeError, match="ours"):
        run([*EVALUATE, "images"])


@pytest.mark.usefixtures("workplace")
def test_debug_shows_where_an_error_came_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["info", "no.safetensors", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
