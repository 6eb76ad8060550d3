"""``aigtool demo``: the whole way on the embedded digits."""

from pathlib import Path
from typing import Annotated

import typer

from aigtool.cli.console import note, percent, print_json, print_table, share, status, wrote
from aigtool.cli.options import Debug, Device, Force, Json, Quiet, Seed


def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Where all goes.", rich_help_panel="Output"
        ),
    ] = Path("demo"),
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train, convert, fine-tune, measure, look into, attack and time a ResNet on real digits.

    All of it ends on one page, report.html. The images are scikit-learn's 1,797 handwritten
    digits; nothing is downloaded. It takes about two minutes on two cores.
    """
    from aigtool.output import check_output

    folder = check_output(out, force=force, folder=True)
    with status("loading the libraries"):
        from aigtool.cli.demo_steps import run_demo
        from aigtool.device import find_device

        where = find_device(device)
    results, files, seconds = run_demo(folder, where, seed)
    if json:
        print_json({"seconds": seconds, **results})
    else:
        print_table(
            f"Digits, {results['dense']['images']} test images, gates by argmax",
            [
                "network",
                "top-1",
                "execution\nrate",
                "GFLOPs",
                "of\ndense",
                "images/s",
                "FGSM\n8/255",
                "with\nJPEG 75",
            ],
            [
                [
                    name,
                    percent(result["top1"], result["top1_stderr"]),
                    share(result["execution_rate"]),
                    f"{result['gflops_executed']:.4f}",
                    share(result["flops_fraction"]),
                    f"{result['images_per_second']:,.0f}",
                    percent(result["top1_fgsm"]),
                    percent(result["top1_fgsm_jpeg"]),
                ]
                for name, result in results.items()
            ],
        )
    wrote(files)
    note(f"look at it: open {folder / 'report.html'} in a browser")
    note(f"all of it took {seconds:.0f} s. On your own images (a folder a class in train/, val/):")
    note("  aigtool convert resnet50 --pretrained --num-classes N --out model.safetensors")
    note("  aigtool finetune model.safetensors --data FOLDER --target-rate 0.6")
